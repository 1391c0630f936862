/* The coherence protocol of the cache as implemented: one key, two nodes with lines, a third voter without lines, and, with
   CLIENTS=1, a client of one of the nodes that has lines, too.

   Theory of operation

   The log. Every node applies the same entries in the same order, so the effect of an entry on the directory is determined when it
   is committed. The model keeps one directory, as of the end of the log, and each entry contains what a node learns by applying it.
   `entry` holds the entries that some node has not applied yet; `applied[n]` counts those that n has applied; entries that both have
   applied are removed. A node may lag, or stop, for as long as the window (WINDOW entries) allows: a paused node makes no step.

   Stamps. Only the stamps of writes are ever compared with what a node has applied, so writes are numbered 1, 2, … Versions, stamps,
   acknowledgements and `pending` are such numbers; 0 is the initial value. `pending[VN(v, n)]` is the stamp up to which n must have
   applied the log before version v may be shown (the pending invalidations of v).

   Clocks. Time passes by EXPIRE (the holder's lease is over by its own clock) and LOSE (a grant is lost in transit, or is over by the
   holder's clock when it arrives). A leader regards a lease as over only if the holder's is over and no grant for it is in transit:
   the holder counts from its request, the leader from its grant, a new leader from its election.

   Names of steps, and where they are in the code:

     WRITE, DELETE        Directory._write; put by an Operation, without if_version
     FETCH                Directory._fetch_one; Reader._fetch, again if the backing store is ahead (Reader._value)
     CLEAN                Directory._written_back; WriteBack._write_batch
     REVOKE, RESTARTED    Directory._revoke, node_restarted -> _void
     APPLY                NearCache.written, fetched, cleaned, voided
     RESTORE              CacheService.load -> NearCache.restored: another node's snapshot replaces the log
     LEARN                NearCache.acknowledged: facts about the past, which may be late, lost, repeated or out of order
     ANSWER (in `settle`) CacheService.write: a put is answered when its pending invalidations are done
     JOIN                 NearCache.step: JOIN (BEGIN is one step with FETCH: a fetch is ordered after its first reader began, so that
                          reader never needs anything newer than the row; COVER is waiting for HIT)
     FINISH               NearCache.install, serves; Reader._finish
     FINISH_OVERTAKEN     a fetch that a write overtook after its value had arrived: used once, not installed
     HIT, EVICT           NearCache.hit; Lines._evict (silent for S and E; M is pinned)
     WRITE_BACK           WriteBack._item, BackingStore.write: by any node in whose directory the value is dirty
     GRANT                Peers._grant: a quorum has confirmed the leader; the lease is granted with the commit index, and is usable
                          when the holder has applied that far (HeldLease.granted, applied). If a deposed leader grants late, for a
                          request confirmed before, that is a grant made before that was in transit for long
     OVERDUE              GrantedLeases.overdue, may_grant, voided: the leader proposes a Revoke, and grants nothing until it is applied
     LEAD                 GrantedLeases.lead; proposals of the old leader are lost, or were committed before
     RESTART              kill -9 and a new process, which applies again what the old one had applied

   The client. It has a near cache at node 1. `stream` is what the node has sent and the client has not read, in order: grants, answers
   with a version to install, invalidations with the lowest stamp that the node does not report before the client has confirmed. The
   client reads its line while it holds its lease, also when the connection is lost. Its requests are not modelled: the node may answer
   one at any time. A fetch whose answer is not installed is a read of the node. Confirmations are cumulative: `processed` is what the
   client has read and the node does not know yet.

   Its lease is over (CLIENT_IS_OVER) when it is over by its own clock and no grant is in the stream: it counts from its request. Only
   then the node's deadline can have passed. Because a grant is capped by what remains of the node's own lease, the leader regards the
   node's lease as over only after that, too.

     CLIENT_READ          a hit in the client
     CLIENT_GRANT         NearCache.grant: while the node holds its own lease; queued behind all invalidations
     CLIENT_FETCH         NearCache.may_install, NearClients.install: a readable line; queued, and the client recorded, in the same step
     RECEIVE              the client reads the stream; CLIENT_EXPIRE, CLIENT_LOSE: as EXPIRE and LOSE, for its grants
     CLIENT_EVICT         NearClients.evicted: the client names a key that it has evicted, while no fetch of it is in progress
     CONFIRM              NearClients.confirm: the client has processed the invalidations that it has read
     DEADLINE             NearClients.expire: the grants that were sent before an invalidation are over; the connection is ended
     FORGET               NearClients.expire, of a gone client: all its grants are over
     CUT, CONNECT         NearClients.leave, open: the connection is lost; a new subscription starts empty, without a lease
     invalidate_client    NearClients.written, flush: a write, a voiding of the node, a snapshot
     REPORTS              NearCache._own_stamp, NearClients.reported: what the node reports as applied, to others and to itself
     MAY_OPEN_SESSION     SessionOpening: a restarted node waits for the longest lease of a client, and reports nothing while it waits

   Invariants, each checked after every step for the *usable* lines (the lease is valid, the pending invalidations are done):

     single_version   single writer or multiple readers: two usable lines never have different versions
     exclusive        E and M: no other node has a usable line, unless it became a sharer by an entry that is not applied here yet
     data_value       if the value is clean, the backing store has the version that the directory names
     no_stale_read    no read is older than a put that was answered before the read began
     monotone_reads   no read is older than a read that ended before it began
     bounded_wait     the node waits for a client no longer than for the grants that it sent before the invalidation

   A reader that joins a flight is remembered only if it needs something newer than the row: the flight must not serve it then.

   Limits of the model: PUTS writes (2 at most), WINDOW entries that some node has not applied, LEADS changes of leader, RESTARTS.
   Reads, fetches, evictions, leases, revocations, write-backs and snapshots are not limited. The model ends when both nodes have
   applied the last write and nothing older is in progress: what can happen then can happen after the first write, too.
   ABSENT: no value at first, and deletions. RESTORES: with snapshots. ALL_STAYS_DIRTY: without write-back. CLIENTS: with a client.

   Each -DBROKEN_… adds one mistake. */

#ifndef PUTS
#define PUTS 2
#endif
#ifndef WINDOW
#define WINDOW 2
#endif
#ifndef LEADS
#define LEADS 0
#endif
#ifndef RESTARTS
#define RESTARTS 0
#endif
#ifndef RESTORES
#define RESTORES 0
#endif
#ifndef CLIENTS
#define CLIENTS 0
#endif
#ifndef STEP
#define STEP d_step
#endif

/* ---- the mistakes ---- */

#ifdef BROKEN_NO_LEASE
#define HOLDS_LEASE(n) true
#else
#define HOLDS_LEASE(n) holds[n]
#endif

#ifdef BROKEN_REVOKES_EARLY
#define IS_OVER(n) true
#elif defined(BROKEN_FROM_RECEIPT)
#define IS_OVER(n) (!holds[n])
#elif defined(BROKEN_NEW_LEADER_DOES_NOT_WAIT)
#define IS_OVER(n) (uncounted[n] || (!holds[n] && !must_apply[n]))
#elif defined(BROKEN_DEPOSED_LEADER_GRANTS)
#define IS_OVER(n) (uncounted[n] || (!holds[n] && !must_apply[n]))
#else
#define IS_OVER(n) (!holds[n] && !must_apply[n] && CAPPED_IS_OVER(n))
#endif

#if defined(BROKEN_NEW_LEADER_DOES_NOT_WAIT) || defined(BROKEN_DEPOSED_LEADER_GRANTS)
#define COUNTED(n) uncounted[n] = 0
#else
#define COUNTED(n) skip
#endif

#ifdef BROKEN_GRANT_IGNORES_INDEX
#define MUST_APPLY 0
#else
#define MUST_APPLY length
#endif

#ifdef BROKEN_GRANT_WHILE_REVOKING
#define MAY_GRANT(n) true
#else
#define MAY_GRANT(n) (!revoking[n])
#endif

#ifdef BROKEN_JOIN_WITHOUT_LEASE
#define MAY_JOIN(n) true
#else
#define MAY_JOIN(n) HOLDS_LEASE(n)
#endif

#ifdef BROKEN_ABSENCE_SERVES_ALL
#define SERVES_JOINED(n) true
#else
#define SERVES_JOINED(n) (!row_absent[n])
#endif

#if CLIENTS
#define OF_CLIENT(n) ((n) == 1)
#else
#define OF_CLIENT(n) false
#endif

#ifdef BROKEN_CLIENT_WITHOUT_LEASE
#define CLIENT_HOLDS_LEASE true
#else
#define CLIENT_HOLDS_LEASE client_holds
#endif

#ifdef BROKEN_CLIENT_FROM_RECEIPT
#define GRANT_COUNTS(position) false
#else
#define GRANT_COUNTS(position) (stream[position] == GRANT)
#endif
#define CLIENT_IS_OVER (!client_holds && !GRANT_COUNTS(0) && !GRANT_COUNTS(1) && !GRANT_COUNTS(2))

#if CLIENTS && !defined(BROKEN_CLIENT_NOT_CAPPED)
#define CAPPED_IS_OVER(n) (!OF_CLIENT(n) || CLIENT_IS_OVER)
#else
#define CAPPED_IS_OVER(n) true
#endif

#if CLIENTS && !defined(BROKEN_RESTART_DOES_NOT_WAIT)
#define MAY_OPEN_SESSION(n) (!OF_CLIENT(n) || CLIENT_IS_OVER)
#else
#define MAY_OPEN_SESSION(n) true
#endif

/* ---- definitions ---- */

#define VN(v, n) ((v) * 2 + (n))
#define OTHER(n) (1 - (n))

/* a line's state, from weak to strong */
#define I 0
#define S 1
#define E 2
#define M 3

/* an entry's kind */
#define WRITTEN 1
#define FETCHED 2
#define CLEANED 3
#define REVOKED 4
#define RESTARTED 5

/* a flight: none; its fetch is in the log; its row has arrived; its value has arrived, too */
#define NONE 0
#define ORDERED 1
#define ROW 2
#define FILLED 3

/* what is on its way to the client: nothing, a grant, an answer with a version to install, an invalidation with its stamp */
#define EMPTY 0
#define GRANT 1
#define ANSWER(v) (2 + (v))
#define IS_ANSWER(message) ((message) >= 2 && (message) <= 4)
#define INVALIDATION(stamp) (5 + (stamp))
#define IS_INVALIDATION(message) ((message) >= 5)
#define STAMP(message) ((message) - 5)		/* 0: the node does not wait for its confirmation */

typedef Entry {
	unsigned kind : 3;
	bit node;
	bit old;			/* of a process that has ended, or of a fetch that no read waits for */
	unsigned version : 2;
	unsigned state : 2;		/* a fetch's row: state of the line that may be installed */
	bit absent;
	bit dirty			/* a fetch's row: it contains the value */
}

/* ---- the log ---- */

Entry entry[WINDOW];
byte length;
byte applied[2];

/* ---- the directory at the end of the log ---- */

byte version;
bit absent;
bit dirty;
bit owner;
bit sharer[2];
byte pending[6];
byte awaited_now[2];			/* the pending invalidations that no voiding has ended */

/* ---- the backing store ---- */

byte stored;				/* the version in the backing store */

/* ---- a node ---- */

byte line[2];
byte line_version[2];
byte known[4];				/* VN(n, m): writes that m has applied, as far as n knows */
bit locally_dirty[2];			/* according to its own directory */
bit locally_absent[2];
bit puts_for[6];			/* VN(v, n): the put of v waits on n */

byte flight[2];
bit registered[2];
bit shared[2];
bit cleaned[2];
bit joined_older[2];			/* a reader that joined needs newer than this row: a newer put was answered … */
bit joined_unseen[2];			/* … or a newer value was read */
byte row_version[2];
byte row_state[2];
bit row_absent[2];
byte overtaken[2];			/* version of a fetch that a write overtook and whose readers are not answered yet */

/* ---- leases ---- */

bit leader;
bit holds[2];
byte must_apply[2];			/* a grant becomes usable when n has applied that far; 0: there is none */
#ifdef BROKEN_INDEX_OF_CONFIRMATION
bit confirmed[2];
byte confirmed_index[2];
#endif
bit revoking[2];			/* by the current leader */
bit revoke_proposed[2];
bit restarted[2];				/* a new process whose session is not open yet */
byte leads, restarts;
#if defined(BROKEN_NEW_LEADER_DOES_NOT_WAIT) || defined(BROKEN_DEPOSED_LEADER_GRANTS)
bit uncounted[2];				/* the leader does not know of its lease */
byte deposed_index;			/* commit index of the deposed leader */
#endif

#if CLIENTS
/* ---- a client of node 1 ---- */

bit client_has_line;
byte client_version;
bit client_holds;				/* its lease */
bit connected;				/* false: the node sends nothing more and hears nothing */
byte stream[3];				/* from the node to the client, in order; it is read also when the connection is lost */

/* ---- what node 1 knows about it ---- */

bit recorded;				/* it may hold the key, and no invalidation was sent since */
byte processed;				/* the lowest stamp that the client has processed and the node waits for; 0: none */
byte unsent;				/* the lowest stamp of an invalidation that was lost with the connection; 0: none */
#ifdef BROKEN_CLIENT_INSTALLS_OVERTAKEN
byte prepared;				/* an answer that is not in the stream yet; EMPTY: none */
#endif
#endif

/* ---- the promises ---- */

byte answered, seen;			/* the newest version of an answered put; of a finished read */

bool single_version = true, exclusive = true, data_value = true, no_stale_read = true, monotone_reads = true;
#if CLIENTS
bool bounded_wait = true;
#endif
byte i;					/* a counter within a step; 0 between steps */

#if CLIENTS
#define AWAITED_AT(position) (stream[position] > INVALIDATION(0))
#define IS_HELD_BACK(stamp) (\
	(processed != 0 && processed <= (stamp)) || (unsent != 0 && unsent <= (stamp)) || \
	(AWAITED_AT(0) && STAMP(stream[0]) <= (stamp)) || (AWAITED_AT(1) && STAMP(stream[1]) <= (stamp)) || \
	(AWAITED_AT(2) && STAMP(stream[2]) <= (stamp)))
#endif

#if CLIENTS
/* A grant counts for the deadline of an invalidation if it was sent before. */
#if defined(BROKEN_DEADLINE_IGNORED)
#define DEADLINE_IS_OVER(position) true
#elif defined(BROKEN_LATER_GRANT_EXTENDS)
#define DEADLINE_IS_OVER(position) CLIENT_IS_OVER
#else
#define DEADLINE_IS_OVER(position) (!client_holds && !(position > 0 && GRANT_COUNTS(0)) && !(position > 1 && GRANT_COUNTS(1)))
#endif
#endif

/* n has applied the log up to the stamp, and its client has confirmed that it has no older value. */
#if !CLIENTS || defined(BROKEN_ACKNOWLEDGES_BEFORE_CLIENT)
#define REPORTS(n, stamp) (known[VN(n, n)] >= (stamp))
#define REPORTS_HERE(n, stamp) REPORTS(n, stamp)
#else
#ifdef BROKEN_RESTARTED_ACKNOWLEDGES
#define REPORTS(n, stamp) (known[VN(n, n)] >= (stamp) && !(OF_CLIENT(n) && IS_HELD_BACK(stamp)))
#else
#define REPORTS(n, stamp) (known[VN(n, n)] >= (stamp) && !(OF_CLIENT(n) && (restarted[n] || IS_HELD_BACK(stamp))))
#endif
#ifdef BROKEN_SHOWS_BEFORE_CLIENT
#define REPORTS_HERE(n, stamp) (known[VN(n, n)] >= (stamp))
#else
#define REPORTS_HERE(n, stamp) REPORTS(n, stamp)
#endif
#endif

#define COVERED(n, v) (REPORTS_HERE(n, pending[VN(v, n)]) && known[VN(n, OTHER(n))] >= pending[VN(v, OTHER(n))])
#ifdef BROKEN_SHOW_EARLY
#define MAY_SHOW(n, v) true
#else
#define MAY_SHOW(n, v) COVERED(n, v)
#endif
#define USABLE(n) (line[n] != I && HOLDS_LEASE(n) && MAY_SHOW(n, line_version[n]))
#define CLIENT_USABLE (client_has_line && CLIENT_HOLDS_LEASE)

#ifdef ONLY
#define PROMISE(number, name) if :: ONLY == number -> assert(name) :: else -> name = true fi
#else
#define PROMISE(number, name) assert(name)
#endif

inline check_promises() {
	i = 0;
	no_stale_read = (!USABLE(0) || line_version[0] >= answered) && (!USABLE(1) || line_version[1] >= answered);
	PROMISE(1, no_stale_read);
	monotone_reads = (!USABLE(0) || line_version[0] >= seen) && (!USABLE(1) || line_version[1] >= seen);
	PROMISE(2, monotone_reads);
	single_version = !(USABLE(0) && USABLE(1)) || line_version[0] == line_version[1];
	PROMISE(3, single_version);
	exclusive = !(USABLE(0) && USABLE(1)) || ((line[0] == S || applied[0] < applied[1]) && (line[1] == S || applied[1] < applied[0]));
	PROMISE(4, exclusive);
	data_value = dirty || stored == version;
	PROMISE(5, data_value)
#if CLIENTS
	;
	no_stale_read = !CLIENT_USABLE || client_version >= answered;
	PROMISE(1, no_stale_read);
	monotone_reads = !CLIENT_USABLE || client_version >= seen;
	PROMISE(2, monotone_reads);
	single_version = !CLIENT_USABLE ||
		((!USABLE(0) || line_version[0] == client_version) && (!USABLE(1) || line_version[1] == client_version));
	PROMISE(3, single_version);
	exclusive = !(CLIENT_USABLE && USABLE(0)) || line[0] == S || applied[0] < applied[1];
	PROMISE(4, exclusive);
	bounded_wait = !AWAITED_AT(0) || client_holds || DEADLINE_IS_OVER(0);
	PROMISE(6, bounded_wait)
#endif
}

/* n has learned something: a put that waits here may be answered. */
inline settle(n) {
	i = 1;
	do
	:: i <= PUTS ->
		if
#ifdef BROKEN_ANSWER_EARLY
		:: puts_for[VN(i, n)] && known[VN(n, n)] >= i ->
#else
		:: puts_for[VN(i, n)] && known[VN(n, n)] >= i && COVERED(n, i) ->
#endif
			puts_for[VN(i, n)] = 0;
			if :: i > answered -> answered = i :: else fi
		:: else
		fi;
		i++
	:: else -> break
	od
}

inline learn(n, m, stamp) {
	if :: known[VN(n, m)] < stamp -> known[VN(n, m)] = stamp :: else fi
}

inline append(what, who) {
	entry[length].kind = what;
	entry[length].node = who;
	entry[length].version = version;
	length++
}

/* Remove the entry that both have applied. The index in a grant moves along. */
inline forget_first() {
	i = 0;
	do
	:: i < WINDOW - 1 ->
		entry[i].kind = entry[i + 1].kind; entry[i].node = entry[i + 1].node; entry[i].old = entry[i + 1].old;
		entry[i].version = entry[i + 1].version; entry[i].state = entry[i + 1].state;
		entry[i].absent = entry[i + 1].absent; entry[i].dirty = entry[i + 1].dirty;
		i++
	:: else -> break
	od;
	entry[WINDOW - 1].kind = 0; entry[WINDOW - 1].node = 0; entry[WINDOW - 1].old = 0;
	entry[WINDOW - 1].version = 0; entry[WINDOW - 1].state = 0; entry[WINDOW - 1].absent = 0; entry[WINDOW - 1].dirty = 0;
	length--; applied[0]--; applied[1]--;
	if :: must_apply[0] > 0 -> must_apply[0]-- :: else fi;
	if :: must_apply[1] > 0 -> must_apply[1]-- :: else fi;
#ifdef BROKEN_DEPOSED_LEADER_GRANTS
	if :: deposed_index > 0 -> deposed_index-- :: else fi
#endif
#ifdef BROKEN_INDEX_OF_CONFIRMATION
	if :: confirmed_index[0] > 0 -> confirmed_index[0]-- :: else fi;
	if :: confirmed_index[1] > 0 -> confirmed_index[1]-- :: else fi
#endif
}

inline forget_flight(n) {
	flight[n] = NONE; registered[n] = 0; shared[n] = 0; cleaned[n] = 0; joined_older[n] = 0; joined_unseen[n] = 0;
	row_version[n] = 0; row_state[n] = 0; row_absent[n] = 0
}

/* The row of an ordered fetch will arrive, but no read waits for it. */
inline forget_order(n) {
	i = applied[n];
	do
	:: i < length ->
		if :: entry[i].kind == FETCHED && entry[i].node == n -> entry[i].old = 1 :: else fi;
		i++
	:: else -> break
	od
}

/* The flight's readers get its row. A reader that joined under a lease does not use an "absent" row, but looks again. */
inline serve(n) {
	no_stale_read = !joined_older[n] || !SERVES_JOINED(n);
	PROMISE(1, no_stale_read);
	monotone_reads = !joined_unseen[n] || !SERVES_JOINED(n);
	PROMISE(2, monotone_reads)
}

inline saw(v) { if :: v > seen -> seen = v :: else fi }

/* Its readers may use its value. It is not installed, and no read joins it. Without a value yet, it is as if it began again. */
inline overtake(n) {
	if
	:: flight[n] == FILLED ->
		serve(n);
		overtaken[n] = row_version[n]
	:: else
	fi;
	forget_order(n);
	forget_flight(n)
}

inline forget_line(n) { line[n] = I; line_version[n] = 0 }

inline forget_lease(n) { holds[n] = 0; must_apply[n] = 0 }

inline grant(n, index) {
	if :: applied[n] < index -> must_apply[n] = index :: else -> holds[n] = 1 fi
}

/* ---- commits ---- */

inline write(n, is_delete) {
	version++;
	i = 0;
	do
	:: i < 2 ->
#ifdef BROKEN_WRITER_NOT_PENDING
		if :: sharer[i] && i != n -> awaited_now[i] = version :: else fi;
#else
		if :: sharer[i] -> awaited_now[i] = version :: else fi;
#endif
		pending[VN(version, i)] = awaited_now[i];
		sharer[i] = 0;
		i++
	:: else -> break
	od;
	if :: version == PUTS -> awaited_now[0] = 0; awaited_now[1] = 0 :: else fi;	/* not needed any more */
	absent = is_delete;
	dirty = 1;
	owner = n;
	if :: !is_delete -> sharer[n] = 1 :: else fi;
	puts_for[VN(version, n)] = 1;
	entry[length].absent = is_delete;
	append(WRITTEN, n)
}

inline fetch(n) {
	flight[n] = ORDERED;
	row_version[n] = version;
	row_absent[n] = absent;
	joined_older[n] = 0; joined_unseen[n] = 0;
	entry[length].absent = absent;
	entry[length].dirty = dirty;
	if
	:: !absent ->
		sharer[n] = 1;
		if
		:: sharer[OTHER(n)] -> entry[length].state = S
		:: else ->
			if :: dirty && owner == n -> entry[length].state = M :: else -> entry[length].state = E fi
		fi
	:: else
	fi;
	append(FETCHED, n)
}

inline clean() {
	dirty = 0;
	owner = 0;
	append(CLEANED, 0);
	if
	:: absent ->					/* the directory removes the record */
		pending[VN(version, 0)] = 0; pending[VN(version, 1)] = 0; awaited_now[0] = 0; awaited_now[1] = 0
	:: else
	fi
}

inline void(what, n) {
	sharer[n] = 0;
	awaited_now[n] = 0;
	append(what, n)
}

/* ---- the client ---- */

#if CLIENTS

inline send(message) {
	if
	:: stream[0] == EMPTY -> stream[0] = message
	:: stream[0] != EMPTY && stream[1] == EMPTY -> stream[1] = message
	:: else -> stream[2] = message
	fi
}

/* What the client does not read in time ends its connection. */
inline invalidate_client(stamp) {
	if
	:: recorded ->
		recorded = 0;
		if
		:: connected && stream[2] == EMPTY && CLIENT_IS_OVER -> send(INVALIDATION(0))
		:: connected && stream[2] == EMPTY -> send(INVALIDATION(stamp))
		:: else ->
			connected = 0;
			if :: !CLIENT_IS_OVER && (unsent == 0 || unsent > stamp) -> unsent = stamp :: else fi
		fi
	:: else
	fi
}

/* No write after those that the node had applied is acknowledged before its client has no line any more. */
inline flush_client(n, applied_before) {
	if :: OF_CLIENT(n) -> invalidate_client(applied_before + 1) :: else fi
}

inline disconnect() {
	connected = 0;
#ifdef BROKEN_CUT_FORGETS_CLIENT
	recorded = 0; processed = 0; unsent = 0;
	if :: IS_INVALIDATION(stream[0]) -> stream[0] = INVALIDATION(0) :: else fi;
	if :: IS_INVALIDATION(stream[1]) -> stream[1] = INVALIDATION(0) :: else fi;
	if :: IS_INVALIDATION(stream[2]) -> stream[2] = INVALIDATION(0) :: else fi
#endif
	skip
}

/* A new subscription starts empty, without a lease. */
inline connect() {
	connected = 1;
#ifndef BROKEN_CONNECTED_KEEPS_LINES
	client_has_line = 0; client_version = 0;
#endif
	client_holds = 0;
	stream[0] = EMPTY; stream[1] = EMPTY; stream[2] = EMPTY;
	recorded = 0; processed = 0; unsent = 0;
#ifdef BROKEN_CLIENT_INSTALLS_OVERTAKEN
	prepared = EMPTY;
#endif
	skip
}

inline receive() {
	if
	:: stream[0] == GRANT -> client_holds = 1
	:: IS_ANSWER(stream[0]) -> client_has_line = 1; client_version = stream[0] - ANSWER(0)
	:: else ->
		client_has_line = 0; client_version = 0;
		if :: STAMP(stream[0]) > 0 && processed == 0 -> processed = STAMP(stream[0]) :: else fi
	fi;
	stream[0] = stream[1]; stream[1] = stream[2]; stream[2] = EMPTY
}

/* Its time is over before it arrives. */
inline lose_grant() {
	if
	:: stream[0] == GRANT -> stream[0] = stream[1]; stream[1] = stream[2]
	:: stream[1] == GRANT -> stream[1] = stream[2]
	:: else
	fi;
	stream[2] = EMPTY
}

#else
inline flush_client(n, applied_before) { skip }
#endif

#if CLIENTS
#define HAS_GRANT (stream[0] == GRANT || stream[1] == GRANT || stream[2] == GRANT)
#define HAS_ANSWER (IS_ANSWER(stream[0]) || IS_ANSWER(stream[1]) || IS_ANSWER(stream[2]))
#ifdef BROKEN_EVICTED_DURING_FETCH
#define MAY_NAME_EVICTED true
#else
#define MAY_NAME_EVICTED (!HAS_ANSWER)
#endif
#define FIRST_AWAITED (AWAITED_AT(0) -> 0 : (AWAITED_AT(1) -> 1 : 2))

#endif

/* ---- applying ---- */

#define NEXT entry[applied[n]]

inline apply_written(n) {
#ifndef BROKEN_INSTALLS_OVERTAKEN
	if :: registered[n] -> overtake(n) :: else fi;
#endif
#if CLIENTS
	if :: OF_CLIENT(n) -> invalidate_client(NEXT.version) :: else fi;
#endif
	known[VN(n, n)] = NEXT.version;
	locally_dirty[n] = 1;
	locally_absent[n] = NEXT.absent;
#ifdef BROKEN_OLD_PROCESS_IS_OWN
	if :: NEXT.node == n && !NEXT.absent ->
#else
	if :: NEXT.node == n && !NEXT.old && !NEXT.absent ->
#endif
		line[n] = M; line_version[n] = NEXT.version
	:: else -> forget_line(n)
	fi
}

inline apply_fetched(n) {
	if
	:: NEXT.node == n ->
		if
		:: !NEXT.old ->
			if :: !NEXT.absent -> registered[n] = 1 :: else fi;
			row_state[n] = NEXT.state;
			if :: NEXT.absent || NEXT.dirty || stored == row_version[n] -> flight[n] = FILLED :: else -> flight[n] = ROW fi
		:: else
		fi
	:: else ->
		if
		:: !NEXT.absent ->
			if :: registered[n] -> shared[n] = 1 :: else fi;
#ifndef BROKEN_STAYS_EXCLUSIVE
			if :: line[n] != I -> line[n] = S :: else fi
#endif
		:: else
		fi
	fi
}

inline apply_cleaned(n) {
	locally_dirty[n] = 0;
	if :: registered[n] -> cleaned[n] = 1 :: else fi;
	if :: line[n] == M -> line[n] = E :: else fi
}

inline flush(n) {
	forget_line(n);
	if :: flight[n] != NONE -> overtake(n) :: else fi;
	forget_lease(n)
}

/* The leader grants again when no revocation of the node is in progress: the index of the next grant is after all of them. */
inline note_voided(n, m) {
#ifdef BROKEN_ANY_VOIDING_ENDS_REVOKING
	if :: n == leader -> revoking[m] = 0 :: else fi
#else
	i = applied[n] + 1;
	do
	:: i < length && !(entry[i].kind == REVOKED && entry[i].node == m) -> i++
	:: else -> break
	od;
	if :: n == leader && i == length && !revoke_proposed[m] -> revoking[m] = 0 :: else fi
#endif
}

inline apply_voided(n) {
	if
	:: NEXT.node == n ->
#ifndef BROKEN_VOIDING_KEEPS_CLIENT
		flush_client(n, known[VN(n, n)]);
#endif
#ifdef BROKEN_REVOKED_KEEPS_LINES
		if :: NEXT.kind == RESTARTED -> flush(n) :: else fi
#else
		flush(n)
#endif
	:: else -> learn(n, OTHER(n), NEXT.version)
	fi;
	note_voided(n, NEXT.node)
}

inline apply(n) {
	if
	:: NEXT.kind == WRITTEN -> apply_written(n)
	:: NEXT.kind == FETCHED -> apply_fetched(n)
	:: NEXT.kind == CLEANED -> apply_cleaned(n)
	:: else -> apply_voided(n)
	fi;
	applied[n]++;
	if :: must_apply[n] != 0 && must_apply[n] <= applied[n] -> must_apply[n] = 0; holds[n] = 1 :: else fi;
	if :: applied[0] > 0 && applied[1] > 0 -> forget_first() :: else fi
}

inline restore(n) {
	i = applied[n];
	do
	:: i < applied[OTHER(n)] ->
		if
		:: entry[i].kind >= REVOKED && entry[i].node == OTHER(n) -> learn(n, OTHER(n), entry[i].version)
		:: else
		fi;
		i++
	:: else -> break
	od;
	applied[n] = applied[OTHER(n)];
#ifdef BROKEN_SNAPSHOT_KEEPS_LINES
	if :: flight[n] != NONE -> overtake(n) :: else fi;
#else
	flush(n);
#endif
#if defined(BROKEN_SNAPSHOT_ACKNOWLEDGES_SKIPPED)
	flush_client(n, known[VN(OTHER(n), OTHER(n))] - 1);
#elif !defined(BROKEN_SNAPSHOT_KEEPS_CLIENT)
	flush_client(n, known[VN(n, n)]);
#endif
	known[VN(n, n)] = known[VN(OTHER(n), OTHER(n))];
	locally_dirty[n] = locally_dirty[OTHER(n)];
	locally_absent[n] = locally_absent[OTHER(n)];
	do
	:: applied[0] > 0 -> forget_first()
	:: else -> break
	od
}

/* ---- leaders and processes ---- */

inline lead(n) {
	leader = n;
	revoking[0] = 0; revoking[1] = 0;
	revoke_proposed[0] = 0; revoke_proposed[1] = 0;
#ifdef BROKEN_NEW_LEADER_DOES_NOT_WAIT
	uncounted[0] = 1; uncounted[1] = 1;
#endif
#ifdef BROKEN_DEPOSED_LEADER_GRANTS
	deposed_index = length;
#endif
	skip					/* a statement must follow the semicolon */
}

inline restart(n, knowledge) {
	restarts++;
	forget_line(n); forget_flight(n); forget_lease(n);
	overtaken[n] = 0;
	puts_for[VN(1, n)] = 0; puts_for[VN(2, n)] = 0;
	known[VN(n, OTHER(n))] = knowledge;
	i = applied[n];
	do
	:: i < length -> if :: entry[i].node == n -> entry[i].old = 1 :: else fi; i++
	:: else -> break
	od;
	restarted[n] = 1;
#if CLIENTS
	if
	:: OF_CLIENT(n) ->
		connected = 0; recorded = 0; processed = 0; unsent = 0;
		if :: IS_INVALIDATION(stream[0]) -> stream[0] = INVALIDATION(0) :: else fi;
		if :: IS_INVALIDATION(stream[1]) -> stream[1] = INVALIDATION(0) :: else fi;
		if :: IS_INVALIDATION(stream[2]) -> stream[2] = INVALIDATION(0) :: else fi
	:: else
	fi;
#endif
	if :: leader == n -> lead(OTHER(n)) :: else fi
}

#define LACKS(n, stamp) (n == leader -> !REPORTS(n, stamp) : known[VN(leader, n)] < stamp)
#define WAITED_FOR(v, n) (known[VN(leader, leader)] >= v && pending[VN(v, n)] > 0 && LACKS(n, pending[VN(v, n)]))
#define NEEDS(n, stamp) (known[VN(n, OTHER(n))] < stamp && REPORTS(OTHER(n), stamp) && (pending[VN(1, OTHER(n))] == stamp || pending[VN(2, OTHER(n))] == stamp))
#define IS_DONE (known[VN(0, 0)] == PUTS && known[VN(1, 1)] == PUTS && !overtaken[0] && !overtaken[1])
#define HAS_ROOM (length < WINDOW && !IS_DONE)
#define CAN_ASK(n) (!holds[n] && !must_apply[n] && !IS_DONE)
#define CLAIMED(n) (line[n] != I && HOLDS_LEASE(n))

/* ---- the steps of a node ---- */

proctype Node(bit n) {
	do
	/* in the log */
	:: STEP { version < PUTS && HAS_ROOM && !restarted[n] -> write(n, 0); check_promises() }
#ifdef ABSENT
	:: STEP { version < PUTS && HAS_ROOM && !restarted[n] && !absent -> write(n, 1); check_promises() }
#endif
	:: STEP { flight[n] == NONE && HAS_ROOM && !restarted[n] -> fetch(n); check_promises() }
	:: STEP { flight[n] == ROW && stored > row_version[n] && HAS_ROOM && !restarted[n] -> fetch(n); check_promises() }
	:: STEP { dirty && stored == version && HAS_ROOM && n == 0 -> clean(); check_promises() }
	:: STEP { revoke_proposed[n] && HAS_ROOM -> revoke_proposed[n] = 0; void(REVOKED, n); check_promises() }
	:: STEP { restarted[n] && HAS_ROOM && MAY_OPEN_SESSION(n) -> restarted[n] = 0; void(RESTARTED, n); check_promises() }

	/* APPLY, RESTORE, LEARN */
	:: STEP { applied[n] < length -> apply(n); settle(n); check_promises() }
#if RESTORES
	:: STEP { n != leader && applied[n] < applied[OTHER(n)] -> restore(n); settle(n); check_promises() }
#endif
	:: STEP { NEEDS(n, 1) -> known[VN(n, OTHER(n))] = 1; settle(n); check_promises() }
	:: STEP { NEEDS(n, 2) -> known[VN(n, OTHER(n))] = 2; settle(n); check_promises() }

	/* HIT, EVICT */
	:: STEP { USABLE(n) && line_version[n] > seen -> saw(line_version[n]); check_promises() }
	:: STEP { line[n] == S || line[n] == E -> forget_line(n) }

	/* JOIN, FINISH, FINISH_OVERTAKEN */
	:: STEP { flight[n] != NONE && MAY_JOIN(n) && !CLAIMED(n) && row_version[n] < answered && !joined_older[n] ->
		joined_older[n] = 1 }
	:: STEP { flight[n] != NONE && MAY_JOIN(n) && !CLAIMED(n) && row_version[n] < seen && !joined_unseen[n] ->
		joined_unseen[n] = 1 }
	:: STEP { flight[n] == FILLED && MAY_SHOW(n, row_version[n]) ->
		serve(n);
		saw(row_version[n]);
		if
		:: !row_absent[n] ->
			line_version[n] = row_version[n];
			line[n] = row_state[n];
			if
			:: shared[n] -> line[n] = S
			:: !shared[n] && cleaned[n] && row_state[n] == M -> line[n] = E
			:: else
			fi
		:: else
		fi;
		forget_flight(n);
		check_promises() }
	:: STEP { overtaken[n] != 0 && MAY_SHOW(n, overtaken[n]) -> saw(overtaken[n]); overtaken[n] = 0; check_promises() }

	/* WRITE_BACK */
#ifndef ALL_STAYS_DIRTY
#ifdef BROKEN_STORE_TAKES_OLDER
	:: STEP { locally_dirty[n] && known[VN(n, n)] != stored ->
#elif defined(BROKEN_DELETION_REPORTED_EARLY)
	:: STEP { locally_dirty[n] && known[VN(n, n)] > stored ->
#else
	:: STEP { locally_dirty[n] && known[VN(n, n)] > stored && (!locally_absent[n] || COVERED(n, known[VN(n, n)])) ->
#endif
		stored = known[VN(n, n)]; check_promises() }
#endif

	/* GRANT, LOSE, EXPIRE */
#ifdef BROKEN_INDEX_OF_CONFIRMATION
	:: STEP { CAN_ASK(n) && !confirmed[n] -> confirmed[n] = 1; confirmed_index[n] = length }
	:: STEP { CAN_ASK(n) && confirmed[n] && MAY_GRANT(n) -> grant(n, confirmed_index[n]); confirmed[n] = 0; check_promises() }
#else
	:: STEP { CAN_ASK(n) && MAY_GRANT(n) -> grant(n, MUST_APPLY); COUNTED(n); check_promises() }
#endif
#ifdef BROKEN_DEPOSED_LEADER_GRANTS
	:: STEP { CAN_ASK(n) && leads > 0 -> grant(n, deposed_index); uncounted[n] = 1; check_promises() }
#endif
	:: STEP { must_apply[n] != 0 -> must_apply[n] = 0 }
	:: STEP { holds[n] -> holds[n] = 0 }

#if CLIENTS
	/* CLIENT_READ, CLIENT_GRANT, CLIENT_FETCH, RECEIVE, CLIENT_EVICT, CLIENT_EXPIRE, CLIENT_LOSE */
	:: STEP { OF_CLIENT(n) && CLIENT_USABLE && client_version > seen -> saw(client_version); check_promises() }
#ifdef BROKEN_GRANT_OVERTAKES
	:: STEP { OF_CLIENT(n) && connected && HOLDS_LEASE(n) && !client_holds -> client_holds = 1; check_promises() }
#else
	:: STEP { OF_CLIENT(n) && connected && HOLDS_LEASE(n) && !HAS_GRANT && stream[2] == EMPTY -> send(GRANT); check_promises() }
#endif
#ifdef BROKEN_CLIENT_INSTALLS_OVERTAKEN
	:: STEP { OF_CLIENT(n) && connected && USABLE(n) && !HAS_ANSWER && prepared == EMPTY ->
		prepared = ANSWER(line_version[n]); recorded = 1 }
	:: STEP { OF_CLIENT(n) && connected && prepared != EMPTY && stream[2] == EMPTY -> send(prepared); prepared = EMPTY }
#else
	:: STEP { OF_CLIENT(n) && connected && USABLE(n) && !HAS_ANSWER && stream[2] == EMPTY ->
		send(ANSWER(line_version[n]));
#ifndef BROKEN_CLIENT_NOT_RECORDED
		recorded = 1;
#endif
		check_promises() }
#endif
	:: STEP { OF_CLIENT(n) && stream[0] != EMPTY -> receive(); check_promises() }
	:: STEP { OF_CLIENT(n) && client_has_line && connected && MAY_NAME_EVICTED ->
		client_has_line = 0; client_version = 0; recorded = 0; check_promises() }
	:: STEP { OF_CLIENT(n) && client_holds -> client_holds = 0; check_promises() }
	:: STEP { OF_CLIENT(n) && HAS_GRANT -> lose_grant(); check_promises() }

	/* CONFIRM, DEADLINE, FORGET, CUT, CONNECT */
	:: STEP { OF_CLIENT(n) && processed != 0 -> processed = 0; settle(n); check_promises() }
	:: STEP { OF_CLIENT(n) && processed == 0 && (AWAITED_AT(0) || AWAITED_AT(1) || AWAITED_AT(2)) && DEADLINE_IS_OVER(FIRST_AWAITED) ->
		i = FIRST_AWAITED; stream[i] = INVALIDATION(0); i = 0; disconnect(); settle(n); check_promises() }
	:: STEP { OF_CLIENT(n) && !connected && CLIENT_IS_OVER && (recorded || unsent != 0) ->
		recorded = 0; unsent = 0; settle(n); check_promises() }
	:: STEP { OF_CLIENT(n) && connected -> disconnect(); settle(n); check_promises() }
	:: STEP { OF_CLIENT(n) && !connected && !restarted[n] -> connect(); settle(n); check_promises() }
#endif

	/* OVERDUE, LEAD, RESTART */
	:: STEP { !revoking[n] && IS_OVER(n) && (WAITED_FOR(1, n) || WAITED_FOR(2, n)) ->
		revoking[n] = 1; revoke_proposed[n] = 1 }
#if LEADS
	:: STEP { n != leader && leads < LEADS -> leads++; lead(n) }
#endif
#if RESTARTS
	:: STEP { restarts < RESTARTS -> restart(n, known[VN(n, OTHER(n))]); check_promises() }
	:: STEP { restarts < RESTARTS && known[VN(n, OTHER(n))] > 0 -> restart(n, 0); check_promises() }
#endif
	od
}

init {
	atomic {
#ifdef ABSENT
		absent = 1;
#endif
#if CLIENTS
		connected = 1;
#endif
		run Node(0);
		run Node(1)
	}
}
