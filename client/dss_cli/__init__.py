"""The command line `dss`.

The modules here carry out the commands and know nothing of `click`: the server's management commands call the same functions. The
package `commands` has the arguments and help texts of `dss`.
"""
