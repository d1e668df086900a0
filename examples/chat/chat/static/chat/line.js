// The WebSocket to the room, opened again for as long as the page is there.

const FIRST_WAIT = 300; // ms
const LONGEST_WAIT = 5000;

export class Line extends EventTarget {
  #address;
  #socket = null;
  #wait = FIRST_WAIT;
  #timer = null;

  constructor(address) {
    super();
    this.#address = address;
    // The network or the reader came back: no reason to sit out the wait.
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.#hurry());
  }

  open() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const socket = new WebSocket(this.#address);
    this.#socket = socket;
    socket.addEventListener("message", (event) => {
      this.#wait = FIRST_WAIT;
      this.dispatchEvent(new CustomEvent("message", { detail: JSON.parse(event.data) }));
    });
    socket.addEventListener("close", () => this.#lost());
  }

  // Returns whether the message went out; what does not is the caller's to keep.
  send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  #lost() {
    this.dispatchEvent(new Event("lost"));
    // Spread out: after a server's restart all pages come at once.
    this.#timer = setTimeout(() => this.open(), this.#wait * (0.75 + Math.random() / 2));
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT);
  }

  #hurry() {
    if (this.#timer === null) return;
    this.#wait = FIRST_WAIT;
    this.open();
  }
}
