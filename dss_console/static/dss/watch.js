// One `cluster.watch` subscription: it connects while the page is visible, tells when nothing arrives, and connects again.

/** Without an event for this long, the view counts as old. Events arrive twice a second. */
const SILENT_MS = 1500;
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
    this.attempts = 0;
    this.isWanted = false;
    this.heardAt = 0;
    this.retry = 0;
    this.check = 0;
  }

  start() {
    if (this.isWanted) return;
    this.isWanted = true;
    this.heardAt = performance.now();
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
    let protocols;
    try {
      protocols = await this.#protocols();
    } catch {
      // No contact. Without a ticket, a closed node refuses the connection.
      if (!this.isWanted) return;
      this.#become("lost", "");
      this.#later();
      return;
    }
    if (!this.isWanted) return;
    if (protocols === null) {
      this.#become("refused", "log in again to see what happens now");
      this.#later();
      return;
    }
    const address = new URL("/ws", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    let socket;
    try {
      socket = new WebSocket(address, protocols);
    } catch {
      this.#later();
      return;
    }
    this.socket = socket;
    socket.onopen = () => socket.send(JSON.stringify({ id: 1, op: "cluster.watch", request: this.request }));
    socket.onmessage = (message) => this.#took(socket, JSON.parse(message.data));
    socket.onclose = (close) => {
      if (this.socket !== socket) return;
      this.socket = null;
      if (close.code === TICKET_ENDED) {
        this.#connect();
        return;
      }
      this.#become("lost", "");
      this.#later();
    };
  }

  /** On a closed node, a browser cannot send a token with a WebSocket: the session gets a ticket for one connection.
   * null: it gets none. Throws without contact. */
  async #protocols() {
    if (!document.querySelector("[data-ticket]")) return [];
    const answer = await fetch("/ui/ticket", { cache: "no-store", redirect: "manual" });
    return answer.ok ? ["dss", `dss.ticket.${(await answer.json()).ticket}`] : null;
  }

  #took(socket, frame) {
    if (this.socket !== socket) return;
    if (frame.event) {
      this.heardAt = performance.now();
      this.attempts = 0;
      this.#become("live", "");
      this.on.event(frame.event);
    } else if (frame.id === 1 && frame.status >= 400) {
      this.#become("refused", frame.detail || frame.code || "");
      this.#drop();
      this.#later();
    }
  }

  #checkSilence() {
    if (this.state === "live" && performance.now() - this.heardAt > SILENT_MS) {
      this.#become("lost", "");
      this.#drop();
      this.#later();
    }
  }

  #later() {
    if (!this.isWanted) return;
    clearTimeout(this.retry);
    this.retry = setTimeout(() => {
      this.#drop();
      this.#connect();
    }, RETRY_MS[Math.min(this.attempts++, RETRY_MS.length - 1)] );
  }

  #drop() {
    const socket = this.socket;
    this.socket = null;
    if (socket) socket.close();
  }

  #become(state, detail) {
    if (state === this.state) return;
    this.state = state;
    this.on.state(state, detail);
  }
}
