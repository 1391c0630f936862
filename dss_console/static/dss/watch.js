// One `cluster.watch` subscription: it connects while the page is visible, tells when nothing arrives, and connects again.

/** Without an event for this long, the view counts as old. Events arrive twice a second. */
const SILENT_MS = 1500;
/** A connection without its first event for this long has failed, also when nothing refuses it: the node hangs. */
const FIRST_EVENT_MS = 5000;
const CHECK_MS = 250;
/** The time of the connection's ticket is over: get another one. */
const TICKET_ENDED = 4408;
const RETRY_MS = [500, 1000, 2000, 4000];

export class Watch {
  /**
   * @param {object} request of `cluster.watch`
   * @param {{event: (event: object) => void, state: (state: string, detail: string) => void}} on `state` is "live", "lost", "refused" or "off"
   */
  constructor(request, on) {
    this.request = request;
    this.on = on;
    this.socket = null;
    this.state = "";
    this.failures = 0;
    this.isWanted = false;
    /** the number of the present attempt to connect: what an earlier one still gets is dropped */
    this.attempt = 0;
    this.isConnecting = false;
    /** when the attempt began, then of the last event */
    this.heardAt = 0;
    this.retry = 0;
    this.check = 0;
  }

  start() {
    if (this.isWanted) return;
    this.isWanted = true;
    this.check = setInterval(() => this.#checkSilence(), CHECK_MS);
    this.#connect();
  }

  stop() {
    if (!this.isWanted) return;
    this.isWanted = false;
    clearInterval(this.check);
    clearTimeout(this.retry);
    this.#drop();
    this.#become("off", "");
  }

  async #connect() {
    const attempt = ++this.attempt;
    this.isConnecting = true;
    this.heardAt = performance.now();
    let protocols;
    try {
      protocols = await this.#protocols();
    } catch {
      // No contact. Without a ticket, a closed node refuses the connection.
      if (attempt === this.attempt) this.#lose();
      return;
    }
    if (attempt !== this.attempt) return;
    if (protocols === null) {
      this.#refuse("log in again to see what happens now");
      return;
    }
    const address = new URL("/ws", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    let socket;
    try {
      socket = new WebSocket(address, protocols);
    } catch {
      this.#lose();
      return;
    }
    this.socket = socket;
    socket.onopen = () => socket.send(JSON.stringify({ id: 1, op: "cluster.watch", request: this.request }));
    socket.onmessage = (message) => this.#took(socket, JSON.parse(message.data));
    socket.onclose = (close) => {
      if (this.socket !== socket) return;
      this.socket = null;
      if (close.code === TICKET_ENDED) this.#connect();
      else this.#lose();
    };
  }

  /** On a closed node, a browser cannot send a token with a WebSocket: the session gets a ticket for one connection.
   * null: it gets none. Throws without contact. */
  async #protocols() {
    if (!document.querySelector("[data-ticket]")) return [];
    // A browser has few connections to a node: requests that a silent network keeps would hold up those that come after them.
    const signal = AbortSignal.timeout(FIRST_EVENT_MS);
    const answer = await fetch("/ui/ticket", { cache: "no-store", redirect: "manual", signal });
    return answer.ok ? ["dss", `dss.ticket.${(await answer.json()).ticket}`] : null;
  }

  #took(socket, frame) {
    if (this.socket !== socket) return;
    if (frame.event) {
      this.heardAt = performance.now();
      this.isConnecting = false;
      this.failures = 0;
      this.#become("live", "");
      this.on.event(frame.event);
    } else if (frame.id === 1 && frame.status >= 400) {
      this.#refuse(frame.detail || frame.code || "");
    }
  }

  #checkSilence() {
    const silentMs = performance.now() - this.heardAt;
    if (this.isConnecting ? silentMs > FIRST_EVENT_MS : this.state === "live" && silentMs > SILENT_MS) this.#lose();
  }

  #lose() {
    this.#become("lost", "");
    this.#later();
  }

  #refuse(detail) {
    this.#become("refused", detail);
    this.#later();
  }

  #later() {
    this.#drop();
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.#connect(), RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)]);
  }

  /** End what is connected, and what is connecting. */
  #drop() {
    const socket = this.socket;
    this.socket = null;
    this.attempt += 1;
    this.isConnecting = false;
    if (socket) socket.close();
  }

  #become(state, detail) {
    if (state === this.state) return;
    this.state = state;
    this.on.state(state, detail);
  }
}
