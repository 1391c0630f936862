"""Whether a change of the members leaves a cluster that can continue.

A new configuration is in force as soon as it is in the log, and only its own voters can commit it. So a change to voters of whom too
few are reachable would end all progress, including that of the change that could correct it. The rule, for the configuration after
the change, of which `needed` voters are a majority:

    fewer than `needed` voters are reachable            refused, whether forced or not
    exactly `needed` are, others are not, and the       refused unless forced: one more failure would stop the cluster, and it is
    change removes a voter that works                   better to remove the unreachable voter first
    otherwise                                           made: it adds a member, removes a failed one, or all voters are reachable

A voter is reachable if it has answered the leader since the request (`since`, a round of messages), or within an election timeout if
there is no such round. The leader itself is reachable. A voter to be removed works if it has answered within an election timeout.
A voter whose store is known to be outdated counts as one that is not reachable, because it could not elect the next leader.
"""

from __future__ import annotations

from dss_raft.core import quorum
from dss_raft.core.errors import QuorumAtRisk
from dss_raft.core.messages import Configuration
from dss_raft.core.state import CoreState


def require_quorum(core: CoreState, after: Configuration, *, force: bool = False, since: int = 0) -> None:
    """Refuse the change to `after` unless the cluster can continue with it.

    Args:
        force: make the change although it leaves no spare voter.
        since: the round that the voters must have answered; 0: any message within an election timeout.

    Raises:
        QuorumAtRisk: refused; it says whether `force` would help.
    """
    voters = [member.id for member in after.members if not member.learner]
    answering = [voter for voter in voters if _is_reachable(core, voter, since)]
    reachable = [voter for voter in answering if core.has_vote(voter)]
    outdated = [voter for voter in answering if not core.has_vote(voter)]
    needed = quorum.majority(len(voters))
    if len(reachable) < needed:
        raise QuorumAtRisk(voters, reachable, needed, may_force=False, outdated=outdated)
    has_spare = len(reachable) > needed or len(reachable) == len(voters)
    if has_spare or force:
        return
    removed = set(core.membership.voters).difference(voters)
    if any(_is_reachable(core, voter) and core.has_vote(voter) for voter in removed):
        raise QuorumAtRisk(voters, reachable, needed, may_force=True, outdated=outdated)


def _is_reachable(core: CoreState, voter: str, since: int = 0) -> bool:
    if voter == core.node_id:
        return True
    peer = core.progress.get(voter)
    if peer is None:
        return False
    if since:
        return peer.round >= since
    # The contact of a new leader's peer is the election until it has answered.
    has_answered = peer.round > 0 or peer.match > 0
    return has_answered and core.ticks - peer.contact_tick <= core.config.election_ticks_max
