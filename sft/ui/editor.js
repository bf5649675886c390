// The message editor. The page holds the messages: each change shows here at once and is told, for the views to follow.
window.sftEditor = (element, props, watch, tell) => {
  const root = element.firstElementChild;
  let conversation, sent;
  const send = () => {
    sent = JSON.stringify(conversation);
    props.value = JSON.parse(sent);
    tell();
  };
  // Changes which messages there are, draws them anew and puts the focus on the first of `places` that takes it.
  const change = (event, act, ...places) => {
    if (event.detail > 1) return; // the second of two quick clicks is on the message that has come to this place
    act(conversation.messages);
    draw();
    places.some((place) => {
      root.querySelector(place)?.focus();
      return root.contains(document.activeElement);
    });
    send();
  };
  const turn = (message, index, { length }) => {
    const made = document.createElement("div");
    made.className = `turn role-${message.role} m-${index}`;
    made.innerHTML = `
      <div class="turn-head">
        <select aria-label="Role of message ${index}">${props.roles.map((role) => `<option>${role}</option>`).join("")}</select>
        <button id="up-${index}" aria-label="Move message ${index} up">↑</button>
        <button id="down-${index}" aria-label="Move message ${index} down">↓</button>
        <button id="remove-${index}" aria-label="Remove message ${index}">✕</button>
      </div>
      <div id="content-${index}"><textarea rows="1" aria-label="Content of message ${index}"></textarea></div>`;
    const [select, up, down, remove, content] = made.querySelectorAll("select, button, textarea");
    const write = (key, value) => {
      message[key] = value;
      send();
    };
    const move = (by) => (messages) => messages.splice(index + by, 0, ...messages.splice(index, 1));
    select.value = message.role;
    content.value = message.content ?? "";
    up.disabled = index === 0;
    down.disabled = index === length - 1;
    content.addEventListener("input", () => write("content", content.value));
    select.addEventListener("change", () => {
      made.classList.replace(`role-${message.role}`, `role-${select.value}`);
      write("role", select.value);
    });
    up.addEventListener("click", (event) => change(event, move(-1), `#up-${index - 1}`, `#down-${index - 1}`));
    down.addEventListener("click", (event) => change(event, move(1), `#down-${index + 1}`, `#up-${index + 1}`));
    remove.addEventListener("click", (event) =>
      change(event, (messages) => messages.splice(index, 1), `#remove-${index}`, `#remove-${index - 1}`, ".add"));
    return made;
  };
  const draw = () => {
    const add = document.createElement("button");
    add.className = "add";
    add.textContent = "Add a message";
    add.addEventListener("click", (event) => {
      const role = conversation.messages.at(-1)?.role === "user" ? "assistant" : "user"; // whose turn it is
      change(event, (messages) => messages.push({ role, content: "" }), `#content-${conversation.messages.length} textarea`);
    });
    root.replaceChildren(...conversation.messages.map(turn), add);
  };
  const show = () => {
    if (JSON.stringify(props.value) === sent) return; // what was told from here
    sent = JSON.stringify(props.value);
    conversation = JSON.parse(sent);
    draw();
  };
  watch("value", show);
  show();
};
