// The page that describes the routes: examples for this very server, and a button that copies them.

const said = document.getElementById("said");

async function copy(example) {
  try {
    await navigator.clipboard.writeText(example.textContent);
    said.textContent = "Copied.";
  } catch { // a browser gives the clipboard only to pages that came over TLS, or from this machine
    getSelection().selectAllChildren(example);
    said.textContent = "Selected: copy it with Ctrl+C.";
  }
}

for (const place of document.querySelectorAll(".example")) {
  const example = place.querySelector("code");
  example.textContent = example.textContent.replace(/'http:..127\.0\.0\.1:8000/, `'${location.origin}`);
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.onclick = () => copy(example);
  place.append(button);
}
