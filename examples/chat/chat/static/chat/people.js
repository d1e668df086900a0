// Who is here, and who is typing.

import { hue, initial, make } from "./log.js";

const TYPING_LASTS = 3500; // ms; a typing page says so every 2 s

export class People {
  #list;
  #count;

  constructor({ list, count }) {
    this.#list = list;
    this.#count = count;
  }

  // One line a name: somebody with two tabs is one person.
  show(people, me) {
    const byName = new Map();
    for (const { name, process } of people) byName.set(name, [...(byName.get(name) ?? []), process]);
    this.#count.textContent = byName.size;
    this.#list.replaceChildren(...[...byName].map(([name, processes]) => this.#draw(name, processes, name === me)));
  }

  #draw(name, processes, mine) {
    const item = make("li", "person");
    item.dataset.name = name;
    item.style.setProperty("--hue", hue(name));
    const avatar = make("span", "avatar", initial(name));
    avatar.setAttribute("aria-hidden", "true");
    const label = make("span", "who", mine ? `${name} (you)` : name);
    const tabs = processes.length > 1 ? `${processes.length} tabs, ` : "";
    item.append(avatar, label, make("span", "via small", tabs + [...new Set(processes)].join(", ")));
    return item;
  }
}

export class Typing {
  #line;
  #timers = new Map(); // name -> timer

  constructor(line) {
    this.#line = line;
  }

  mark(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.set(name, setTimeout(() => this.clear(name), TYPING_LASTS));
    this.#show();
  }

  clear(name) {
    clearTimeout(this.#timers.get(name));
    if (this.#timers.delete(name)) this.#show();
  }

  #show() {
    const names = [...this.#timers.keys()];
    const verb = names.length === 1 ? "is" : "are";
    const who = names.length > 3 ? `${names.length} people` : new Intl.ListFormat("en").format(names);
    this.#line.textContent = names.length ? `${who} ${verb} typing…` : "";
  }
}
