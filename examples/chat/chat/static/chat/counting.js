// The page that counts: how many messages its process has sent, and how many have arrived at each process.

import { Line } from "./line.js";

const at = (id) => document.getElementById(id);
const rows = new Map(); // process -> its cells
let paused = false;

const address = new URL(document.body.dataset.socket, location.href);
address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
const line = new Line(address);
line.addEventListener("message", ({ detail }) => handlers[detail.type]?.(detail));
line.addEventListener("lost", () => (at("state").textContent = "The server does not answer."));
line.open();

const handlers = {
  welcome({ forwarders }) {
    rows.clear();
    at("counts").replaceChildren();
    at("sent").textContent = "0";
    at("state").textContent = "";
    at("forwarders").hidden = !forwarders;
    showPaused(false);
  },

  arrived({ process, sent, arrived, lost, twice }) {
    const cells = rows.get(process) ?? addRow(process);
    at("sent").textContent = sent.toLocaleString("en");
    [arrived, lost, twice].forEach((count, index) => (cells[index].textContent = count.toLocaleString("en")));
    showEqual(cells[0]);
  },

  paused({ sent }) {
    at("sent").textContent = sent.toLocaleString("en");
    at("state").textContent = "Paused";
    for (const [arrived] of rows.values()) showEqual(arrived);
  },

  forwarders({ states }) {
    at("lamps").replaceChildren(...states.map(lamp));
    at("kill").disabled = states.some((state) => state !== "running");
  },

  layer({ up }) {
    at("state").textContent = up ? "" : "No forwarder can be reached.";
  },
};

function addRow(process) {
  const row = at("counts").insertRow();
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = process;
  row.append(head);
  const cells = [row.insertCell(), row.insertCell(), row.insertCell()];
  rows.set(process, cells);
  return cells;
}

function showEqual(arrived) {
  arrived.parentElement.dataset.equal = arrived.textContent === at("sent").textContent;
}

function lamp(state, index) {
  const item = document.createElement("li");
  item.dataset.state = state;
  item.textContent = `forwarder ${index + 1}: ${state}`;
  return item;
}

function showPaused(now) {
  paused = now;
  at("pause").textContent = paused ? "Go on" : "Pause";
}

at("kill").addEventListener("click", () => line.send({ type: "kill" }));
at("pause").addEventListener("click", () => {
  line.send({ type: paused ? "go" : "pause" });
  showPaused(!paused);
  at("state").textContent = "";
});
