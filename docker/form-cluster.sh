#!/bin/sh
# Forms a Valkey Cluster of the given nodes, with one replica for each primary. Later starts only tell the nodes each other's addresses,
# which may have changed.
#
#   form-cluster.sh host:port...
set -eu

# Nodes know each other by IP addresses.
addresses=
for node in "$@"; do
  address=$(getent ahostsv4 "${node%:*}" | head -n 1 | cut -d ' ' -f 1)
  addresses="$addresses $address:${node##*:}"
done

at() {
  node=$1
  shift
  valkey-cli -h "${node%:*}" -p "${node##*:}" "$@"
}

first=$1 second=$2
if at "$first" cluster info | grep -q '^cluster_slots_assigned:16384'; then
  set -- $addresses
  # A node learns its own address when another one meets it.
  at "$second" cluster meet "${1%:*}" "${1##*:}"
  shift
  for address in "$@"; do
    at "$first" cluster meet "${address%:*}" "${address##*:}"
  done
else
  valkey-cli --cluster create $addresses --cluster-replicas 1 --cluster-yes
fi
