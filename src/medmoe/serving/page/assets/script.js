// The few things that Gradio cannot do without keeping a file or its name: a picture goes to the
// server as bytes alone, an export is saved from memory. Nothing here talks to another host.
"use strict";

(() => {
  const field = () => document.querySelector("#case-handle textarea, #case-handle input");

  const say = (text, wrong = false) => {
    const line = document.getElementById("page-said");
    line.setAttribute("role", wrong ? "alert" : "status");
    line.className = wrong ? "said warn" : "said soft";
    line.textContent = text;
  };

  const open = (handle) => {
    const box = field();
    box.value = handle;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    // As if somebody had typed it and pressed Enter: that is what starts Gradio's event.
    const enter = new KeyboardEvent("keypress", { key: "Enter", bubbles: true });
    setTimeout(() => box.dispatchEvent(enter), 0);
  };

  const reason = async (reply) => {
    if (reply.status === 401) return "You are signed out: reload the page and sign in again.";
    try {
      return (await reply.json()).error.message;
    } catch {
      return `The server refused it (${reply.status}).`;
    }
  };

  const send = async (files) => {
    if (!files.length) return;
    if (files.length > 1) return say("Give one picture at a time.", true);
    say("Reading the picture …");
    try {
      // A File as the body sends its bytes alone: no name, no date, no type.
      const reply = await fetch("page/picture", {
        method: "POST",
        headers: { "Content-Type": "application/octet-stream" },
        body: new Blob([files[0]]),
      });
      if (!reply.ok) return say(await reason(reply), true);
      say("");
      open((await reply.json()).handle);
    } catch {
      say("The server cannot be reached, or refused a file of this size.", true);
    }
  };

  const exported = async (format) => {
    const picture = document.querySelector("#with-picture input")?.checked === true;
    const reply = await fetch("page/export", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ handle: field().value, format, picture }),
    });
    if (!reply.ok) throw new Error(await reason(reply));
    return reply.blob();
  };

  const save = async (format) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await exported(format));
    link.download = `case.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say(`Saved as case.${format}.`);
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
    say("Copied.");
  };

  document.addEventListener("change", (event) => {
    if (event.target.id !== "picture-file") return;
    send([...event.target.files]);
    event.target.value = ""; // the same file may be given again, and its name is not kept
  });

  document.addEventListener("click", (event) => {
    const wanted = event.target.closest?.("[data-export]")?.dataset.export;
    if (!wanted) return;
    (wanted === "copy" ? copy() : save(wanted)).catch((error) => say(error.message, true));
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
