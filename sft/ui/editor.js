// The message editor. The page holds the messages: each change shows here at once and is told, for the views to follow.
window.sftEditor = (element, props, watch, tell) => {
  const root = element.firstElementChild;
  let conversation, turns;
  const send = () => {
    props.value = JSON.parse(JSON.stringify(conversation));
    tell();
  };
  const turn = (message) => {
    const made = document.createElement("div");
    made.innerHTML = `
      <div class="turn-head">
        <select>${props.roles.map((role) => `<option>${role}</option>`).join("")}</select>
        <button class="up">↑</button><button class="down">↓</button><button class="remove">✕</button>
      </div>
      <div class="turn-content"><textarea rows="1" dir="auto"></textarea></div>`;
    const [select, up, down, remove, content] = made.querySelectorAll("select, button, textarea");
    const at = () => conversation.messages.indexOf(message);
    const move = (by) => (messages) => messages.splice(at() + by, 0, ...messages.splice(at(), 1));
    const write = (key, value) => {
      message[key] = value;
      send();
    };
    select.value = message.role;
    content.value = message.content;
    content.addEventListener("input", () => write("content", content.value));
    select.addEventListener("change", () => {
      made.classList.replace(`role-${message.role}`, `role-${select.value}`);
      write("role", select.value);
    });
    up.addEventListener("click", (event) => change(event, move(-1), () => [up, down]));
    down.addEventListener("click", (event) => change(event, move(1), () => [down, up]));
    remove.addEventListener("click", (event) => {
      const index = at();
      change(event, (messages) => messages.splice(index, 1), () => {
        const next = root.children[Math.min(index, conversation.messages.length - 1)];
        return [next?.querySelector(".remove") ?? add];
      });
    });
    return made;
  };
  // Gives all of a message's parts its number.
  const name = (made, message, index) => {
    const [select, up, down, remove, content] = made.querySelectorAll("select, button, textarea");
    made.className = `turn role-${message.role} m-${index}`;
    for (const button of [up, down, remove]) button.id = `${button.className}-${index}`;
    content.parentElement.id = `content-${index}`;
    select.id = `role-${index}`;
    select.ariaLabel = `Role of message ${index}`;
    content.ariaLabel = `Content of message ${index}`;
    up.ariaLabel = `Move message ${index} up`;
    down.ariaLabel = `Move message ${index} down`;
    remove.ariaLabel = `Remove message ${index}`;
    up.disabled = index === 0;
    down.disabled = index === conversation.messages.length - 1;
  };
  // Moves no element that can stay, for with it would go what its field can undo.
  const draw = () => {
    const { messages } = conversation;
    messages.forEach((message) => turns.has(message) || turns.set(message, turn(message)));
    const made = messages.map((message) => turns.get(message));
    [...root.children].forEach((each) => each === add || made.includes(each) || each.remove());
    made.forEach((each, index) => {
      if (root.children[index] !== each) root.insertBefore(each, root.children[index]);
      name(each, messages[index], index);
    });
  };
  // Changes which messages there are, and puts the focus on the first of `places` that takes it.
  const change = (event, act, places) => {
    if (event.detail > 1) return; // of two quick clicks, the second is on whatever has come to this place
    act(conversation.messages);
    draw();
    places().find((place) => !place.disabled)?.focus();
    send();
  };
  const add = document.createElement("button");
  add.className = "add";
  add.textContent = "Add a message";
  add.addEventListener("click", (event) => {
    const role = conversation.messages.at(-1)?.role === "user" ? "assistant" : "user"; // whose turn it is
    change(event, (messages) => messages.push({ role, content: "" }), () => [add.previousElementSibling.querySelector("textarea")]);
  });
  let held = false; // Enter that pressed a button: what it repeats is not meant for what has the focus then
  root.addEventListener("keydown", (event) => {
    if (event.repeat && held) event.preventDefault();
    else held = event.key === "Enter" && event.target.tagName === "BUTTON";
  });
  // Another conversation has come from the server: all is drawn anew, and the focus stays in the field that it was in.
  const show = () => {
    const { id, parentElement, selectionStart, selectionEnd } = document.activeElement;
    const place = root.contains(parentElement) && (id || parentElement.id);
    conversation = JSON.parse(JSON.stringify(props.value));
    turns = new Map();
    draw();
    if (!place) return;
    const field = root.querySelector(`button#${place}, select#${place}, #${place} textarea`);
    field?.focus();
    field?.setSelectionRange?.(selectionStart, selectionEnd);
  };
  root.append(add);
  show();
  watch("value", () => {
    show();
    tell();
  });
};
