/* A network of ONNX Runtime for browsers whose weights come from a packed file.

   SPDX-License-Identifier: Apache-2.0 */

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { open } from "../wshare.js";
import { prepared } from "./pixels.js";

/* More threads need headers that a plain server does not send (cross-origin isolation). */
ort.env.wasm.numThreads = 1;

/* What the export wrote into the graph: the entry `wshare` of its metadata. */
export function metadata(graph) {
  for (const entry of fields(graph, 14)) {
    const [key] = fields(entry, 1), [value] = fields(entry, 2), text = new TextDecoder();
    if (text.decode(key) === "wshare") return JSON.parse(text.decode(value));
  }
  throw new Error("the graph: not written by wshare export --to onnx-external");
}

/* The values of a field that holds bytes, in a message of Protocol Buffers. */
function* fields(message, wanted) {
  let at = 0;
  const number = () => {
    let value = 0, place = 1;
    for (;; place *= 128) {
      const octet = message[at++];
      value += (octet % 128) * place;
      if (!(octet >= 128)) return value;
    }
  };
  while (at < message.length) {
    const key = number(), kind = key % 8;
    if (kind === 0) number();
    const size = { 0: 0, 1: 8, 2: kind === 2 ? number() : 0, 5: 4 }[kind];
    if (size === undefined) throw new Error("the graph: no ONNX file");
    if (kind === 2 && Math.floor(key / 8) === wanted) yield message.subarray(at, at + size);
    at += size;
  }
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (octet) => octet.toString(16).padStart(2, "0")).join("");
}

/* The network of a graph and a packed file, both Uint8Array, with what it took to make it. */
export async function load(graph, packed) {
  const about = metadata(graph);
  if ((await sha256(packed)) !== about.packed.sha256) {
    throw new Error("the packed file: the graph was written from another one; take the two that belong together");
  }
  if (!about.preprocessing) throw new Error("the graph: tells no preprocessing; export it by the command wshare export");
  const started = performance.now();
  const data = (await open(packed)).data();
  const decoded = performance.now();
  const session = await ort.InferenceSession.create(graph, { externalData: [{ path: about.data.name, data }] });
  return {
    about,
    session,
    sizes: { graph: graph.length, packed: packed.length, float32: data.length },
    times: { decode: decoded - started, start: performance.now() - decoded },
  };
}

/* Outputs of the network for an image (ImageBitmap), the first of them Float32Array, and the times. */
export async function run(network, image) {
  const started = performance.now();
  const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data, dims } = prepared(context.getImageData(0, 0, image.width, image.height), network.about.preprocessing);
  const ready = performance.now();
  const input = new ort.Tensor("float32", data, dims), { session } = network;
  const answers = await session.run({ [session.inputNames[0]]: input });
  const times = { prepare: ready - started, run: performance.now() - ready };
  return { outputs: answers[session.outputNames[0]].data, times };
}

/* The classes of the highest outputs: [{name, probability}]. */
export function best(outputs, categories, count = 5) {
  const highest = Math.max(...outputs), shares = Array.from(outputs, (output) => Math.exp(output - highest));
  const sum = shares.reduce((before, share) => before + share, 0);
  const order = shares.map((_, place) => place).sort((a, b) => shares[b] - shares[a]);
  return order.slice(0, count).map((place) => ({
    name: categories?.[place] ?? `class ${place}`,
    probability: shares[place] / sum,
  }));
}
