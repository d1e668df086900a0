// Remember the name for the next visit of this browser.
const name = document.getElementById("name");
name.value ||= localStorage.getItem("chat-name") ?? "";
document.getElementById("enter").addEventListener("submit", () => localStorage.setItem("chat-name", name.value.trim()));
