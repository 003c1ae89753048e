// What the page's controls do: each tells the server, and what comes back is put into its place.
// Nothing here talks to another host, and no name of a file is sent.
"use strict";

(() => {
  const at = (id) => document.getElementById(id);
  const noPicture = at("picture").innerHTML;
  let handle = ""; // of the case that is shown
  let line = null; // open as long as the page shows it
  let asked = null; // aborts the answer that is coming

  const say = (place, text, wrong = true) => {
    const said = at(place);
    said.setAttribute("role", text && wrong ? "alert" : "status");
    said.className = text && wrong ? "said warn" : "said soft";
    if (said.textContent !== text) said.textContent = text;
  };

  const reason = async (reply) => {
    if (reply.status === 401) return "You are signed out: reload the page and sign in again.";
    try {
      return (await reply.json()).error.message;
    } catch {
      return `The server refused it (${reply.status}).`;
    }
  };

  const post = async (path, body, signal) => {
    const bytes = body instanceof Blob;
    const type = bytes ? "application/octet-stream" : "application/json";
    const sent = {
      method: "POST",
      headers: { "Content-Type": type },
      body: bytes ? body : JSON.stringify(body),
      signal,
    };
    const reply = await fetch(`page/${path}`, sent).catch(() => {
      const more = bytes ? ", or refused a file of this size" : "";
      throw new Error(`The server cannot be reached${more}.`);
    });
    if (!reply.ok) throw new Error(await reason(reply));
    return reply;
  };

  // ---- what comes back ----

  const hold = (given) => {
    if (given === handle) return;
    handle = given;
    line?.close();
    line = given ? new EventSource(`page/line/${given}`) : null;
  };

  const converse = (messages) => {
    const chat = at("chat");
    messages.forEach(({ role, content }, place) => {
      const message = chat.children[place] ?? chat.appendChild(document.createElement("p"));
      message.className = role;
      message.dataset.testid = role === "user" ? "user" : "bot";
      if (message.textContent !== content) message.textContent = content;
    });
    while (chat.children.length > messages.length) chat.lastChild.remove();
    chat.scrollTop = chat.scrollHeight;
  };

  const busy = (yes) => {
    at("ask").hidden = yes;
    at("stop").hidden = !yes;
  };

  const slide = (id, { min, max, step, value }) => {
    for (const box of [at(`${id}-number`), at(id)]) Object.assign(box, { min, max, step, value });
  };

  const control = ({ window: view, frame, plane }) => {
    if (plane !== undefined) { // else the picture is the same, in another plane
      at("view").hidden = !view;
      at("planes").hidden = !plane;
      at("plane").value = "";
    }
    at("frames").hidden = !frame;
    if (view) {
      at("window").replaceChildren(...view.presets.map((name) => new Option(name, name)));
      slide("center", view.center);
      slide("width", view.width);
    }
    if (frame) {
      at("frame-label").textContent = frame.label;
      slide("frame", frame.slider);
    }
  };

  const show = (update) => {
    say("said", update.notice);
    say("page-said", update.picture_notice);
    if ("handle" in update) hold(update.handle);
    if ("picture" in update) at("picture").innerHTML = update.picture || noPicture;
    if ("evidence" in update) at("evidence").innerHTML = update.evidence;
    if ("messages" in update) converse(update.messages);
    if ("question" in update) at("question").value = update.question;
    if ("busy" in update) busy(update.busy);
    if ("controls" in update) control(update.controls);
  };

  // ---- what is asked for ----

  /** Tell the server what a control says, and show what changes. */
  const call = async (name, said) => {
    try {
      const update = await (await post(`call/${name}`, { handle, ...said })).json();
      show(update);
      return update;
    } catch (error) {
      say("page-said", error.message);
      return {};
    }
  };

  /** Of what comes while a call is under way only the last is sent. */
  const latest = (send) => {
    let waiting = null;
    let running = false;
    return async (...said) => {
      waiting = said;
      if (running) return;
      running = true;
      while (waiting) {
        const next = waiting;
        waiting = null;
        await send(...next);
      }
      running = false;
    };
  };

  // Whatever shows another case, or none, ends an answer that still comes.
  const end = () => {
    asked?.abort();
    asked = null;
    busy(false);
  };

  const ask = async () => {
    if (asked) return;
    const mine = new AbortController();
    asked = mine;
    try {
      const said = { handle, question: at("question").value, explain: at("explain").checked };
      const reply = await post("ask", said, mine.signal);
      const pieces = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) {
        const lines = (rest + piece.value).split("\n");
        rest = lines.pop();
        for (const update of lines) if (asked === mine) show(JSON.parse(update));
      }
    } catch (error) {
      if (!mine.signal.aborted) say("said", error.message);
    }
    if (asked === mine) end();
  };

  const send = async (files) => {
    if (!files.length) return;
    if (files.length > 1) return say("page-said", "Give one picture at a time.");
    say("page-said", "Reading the picture …", false);
    try {
      // A Blob of a file sends its bytes alone: no name, no date, no type.
      const update = await (await post("picture", new Blob([files[0]]))).json();
      end();
      show(update);
    } catch (error) {
      say("page-said", error.message);
    }
  };

  const exported = (format) =>
    post("export", { handle, format, picture: at("with-picture").checked });

  const save = async (format) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await (await exported(format)).blob());
    link.download = `case.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say("page-said", `Saved as case.${format}.`, false);
  };

  const copy = async () => {
    const text = await (await exported("txt")).text();
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
    } else {
      // Without HTTPS a browser has no clipboard interface; the old way still works.
      const box = document.createElement("textarea");
      box.value = text;
      document.body.append(box);
      box.select();
      document.execCommand("copy");
      box.remove();
    }
    say("page-said", "Copied.", false);
  };

  // ---- which control does what ----

  at("ask").addEventListener("click", ask);
  at("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  at("stop").addEventListener("click", () => {
    end();
    call("stopped");
  });
  at("clear").addEventListener("click", () => {
    end();
    call("anew");
  });

  const look = latest(async (window) => {
    const update = await call("window", { window });
    if (!Array.isArray(window) && update.window) {
      const [center, width] = update.window;
      for (const box of ["center", "center-number"]) at(box).value = center;
      for (const box of ["width", "width-number"]) at(box).value = width;
    }
  });
  const lookOwn = () => look(["center", "width"].map((id) => Number(at(`${id}-number`).value)));
  at("window").addEventListener("change", ({ target }) => {
    if (target.value === target.options[target.length - 1].value) lookOwn();
    else look(target.selectedIndex ? target.value : null);
  });
  at("plane").addEventListener("change", ({ target }) =>
    call("plane", { plane: target.value || null }),
  );
  const frame = latest((number) => call("frame", { frame: number }));
  for (const id of ["center", "width", "frame"]) {
    for (const [box, other] of [[id, `${id}-number`], [`${id}-number`, id]]) {
      at(box).addEventListener("input", () => {
        at(other).value = at(box).value;
        if (id === "frame") return frame(Math.trunc(Number(at(box).value)));
        at("window").selectedIndex = at("window").length - 1;
        lookOwn();
      });
    }
  }

  document.addEventListener("change", (event) => {
    if (event.target.id !== "picture-file") return;
    send([...event.target.files]);
    event.target.value = ""; // the same file may be given again, and its name is not kept
  });
  document.addEventListener("click", ({ target }) => {
    const { export: format, example } = target.closest?.("button")?.dataset ?? {};
    if (example) {
      end();
      call("example", { example });
    } else if (format) {
      (format === "copy" ? copy() : save(format)).catch((e) => say("page-said", e.message));
    }
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    send([...event.dataTransfer.files]);
  });
})();
