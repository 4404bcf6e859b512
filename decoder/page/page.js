/* Loads network.onnx and packed.safetensors, or what ?graph= and ?packed= name, and classifies pictures.

   SPDX-License-Identifier: Apache-2.0 */

import { best, load, run } from "./network.js";

const place = (name) => document.getElementById(name);
const milliseconds = (time) => `${time.toFixed(0)} ms`;

function say(text) {
  place("said").textContent = text;
}

/* Rows of a table, the first cell of each being its head. */
function fill(table, rows) {
  table.replaceChildren(
    ...rows.map((texts) => {
      const row = document.createElement("tr");
      for (const [number, text] of texts.entries()) {
        const cell = row.appendChild(document.createElement(number ? "td" : "th"));
        if (!number) cell.scope = "row";
        cell.textContent = text;
      }
      return row;
    }),
  );
}

async function fetched(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function start() {
  const given = new URLSearchParams(location.search);
  const files = [given.get("graph") ?? "network.onnx", given.get("packed") ?? "packed.safetensors"];
  const network = await load(...(await Promise.all(files.map(fetched))));
  const { graph, packed, float32 } = network.sizes, bytes = (count) => `${count.toLocaleString("en")} bytes`;
  fill(place("sizes"), [
    ["download: packed file and graph", bytes(packed + graph)],
    ["weights as float32", bytes(float32)],
    ["to decode the packed file", milliseconds(network.times.decode)],
    ["to start the network", milliseconds(network.times.start)],
  ]);
  place("picture").addEventListener("change", (event) => guarded(() => classify(network, event.target.files[0])));
  place("picture").disabled = false;
  say("Choose a picture.");
}

async function classify(network, file) {
  if (!file) return;
  say("Computing.");
  /* Values of pixels as they are in the file. */
  const image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { outputs, times } = await run(network, image);
  const found = best(outputs, network.about.categories);
  fill(place("classes"), [
    ...found.map(({ name, probability }) => [name, `${(100 * probability).toFixed(1)} %`]),
    ["to resize the picture", milliseconds(times.prepare)],
    ["to run the network", milliseconds(times.run)],
  ]);
  URL.revokeObjectURL(place("shown").src);
  place("shown").src = URL.createObjectURL(file);
  place("shown").alt = `the picture ${file.name}`;
  place("shown").hidden = false;
  say(`It is most likely: ${found[0].name}.`);
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    say(error.message);
  }
}

guarded(start);
