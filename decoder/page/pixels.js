/* An image as a network takes it: resized and cropped, to the byte as Pillow does it in Python, and normalised.

   SPDX-License-Identifier: Apache-2.0 */

/* Kernels by their reach, as Pillow has them. */
const KERNELS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => cubic(Math.abs(x))],
  lanczos: [3, (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
/* Weights of a kernel are integers, so many bits of them behind the point. */
const BITS = 22;

function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/* {data: Float32Array, dims: [1, C, H, W]} of an ImageData, as `preprocessing` of the graph's metadata says. */
export function prepared(image, preprocessing) {
  const { channels, order, mean, std } = preprocessing;
  const { width, height, data } = placed(plain(image, channels), preprocessing);
  const size = width * height, values = new Float32Array(channels * size);
  for (let channel = 0; channel < channels; channel++) {
    const from = order === "bgr" ? channels - 1 - channel : channel;
    const centre = Math.fround(mean[channel]), scale = Math.fround(std[channel]);
    /* Each step is rounded to float32, as Python does. */
    for (let place = 0; place < size; place++) {
      const value = Math.fround(data[place * channels + from] / 255);
      values[channel * size + place] = Math.fround(value - centre) / scale;
    }
  }
  return { data: values, dims: [1, channels, height, width] };
}

/* The same without opacity, of one channel or three. */
function plain({ width, height, data }, channels) {
  if (channels !== 1 && channels !== 3) throw new Error(`the network takes ${channels} channels, which no picture has`);
  const values = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    if (channels === 1) {
      values[to++] = (data[from] * 19595 + data[from + 1] * 38470 + data[from + 2] * 7471 + 0x8000) >> 16;
    } else {
      for (let channel = 0; channel < 3; channel++) values[to++] = data[from + channel];
    }
  }
  return { width, height, channels, data: values };
}

function placed(image, { resize, crop, letterbox, interpolation }) {
  const [high, wide] = crop === null || Array.isArray(crop) ? crop ?? [] : [crop, crop];
  const size = letterbox === null ? resized(image, resize) : fitted(image, high, wide);
  const whole = interpolation === "nearest" ? nearest(image, ...size) : smooth(image, ...size, KERNELS[interpolation]);
  return crop === null ? whole : cropped(whole, high, wide, letterbox ?? 0);
}

/* Height and width after the resize, of which one number is the shorter side. */
function resized({ width, height }, resize) {
  if (resize === null) return [height, width];
  if (Array.isArray(resize)) return resize;
  const longer = Math.trunc((resize * Math.max(width, height)) / Math.min(width, height));
  return width <= height ? [longer, resize] : [resize, longer];
}

/* The largest size of these proportions that fits inside of the crop. */
function fitted({ width, height }, high, wide) {
  const scale = Math.min(high / height, wide / width);
  return [Math.max(1, even(height * scale)), Math.max(1, even(width * scale))];
}

/* Rounded, half to even. */
function even(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}

function cropped(image, height, width, fill) {
  const { channels } = image, data = new Uint8Array(width * height * channels).fill(fill);
  const left = start(image.width, width), top = start(image.height, height);
  for (let row = Math.max(0, -top); row < Math.min(height, image.height - top); row++) {
    for (let column = Math.max(0, -left); column < Math.min(width, image.width - left); column++) {
      const from = ((row + top) * image.width + column + left) * channels;
      data.set(image.data.subarray(from, from + channels), (row * width + column) * channels);
    }
  }
  return { width, height, channels, data };
}

/* The first pixel of a crop at the centre. */
function start(length, side) {
  return side <= length ? even((length - side) / 2) : -Math.floor((side - length) / 2);
}

function nearest(image, height, width) {
  const rows = places(image.height, height), columns = places(image.width, width), { channels } = image;
  const data = new Uint8Array(width * height * channels);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const from = (rows[row] * image.width + columns[column]) * channels;
      data.set(image.data.subarray(from, from + channels), (row * width + column) * channels);
    }
  }
  return { width, height, channels, data };
}

/* Pixels that are nearest, by sums as Pillow makes them. */
function places(length, target) {
  const step = length / target, found = [];
  for (let at = step * 0.5; found.length < target; at += step) found.push(Math.trunc(at));
  return found;
}

/* Along rows and along columns, with bytes in between: columns first where they lose many more pixels (Pillow 13). */
function smooth(image, height, width, kernel) {
  const { channels } = image, lost = image.height - height;
  const wide = (data, lines) => along(data, lines, image.width, channels, width, kernel);
  const high = (data, columns) => {
    const found = along(turned(data, image.height, columns, channels), columns, image.height, channels, height, kernel);
    return turned(found, columns, height, channels);
  };
  const columnsFirst = lost > 0 && lost > 2 * (image.width - width);
  const data = columnsFirst
    ? wide(high(image.data, image.width), height)
    : high(wide(image.data, image.height), width);
  return { width, height, channels, data };
}

/* Rows and columns exchanged. */
function turned(data, height, width, channels) {
  const found = new Uint8Array(data.length);
  for (let row = 0, from = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const to = (column * height + row) * channels;
      for (let channel = 0; channel < channels; channel++) found[to + channel] = data[from++];
    }
  }
  return found;
}

/* Each of `lines`, of `length` pixels, resized to `target`. */
function along(data, lines, length, channels, target, [reach, kernel]) {
  if (length === target) return data;
  const found = new Uint8Array(lines * target * channels), scale = length / target, wider = Math.max(1, scale);
  for (let place = 0; place < target; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * wider + 0.5));
    const last = Math.min(length, Math.trunc(centre + reach * wider + 0.5));
    const weights = integers(first, last, centre, 1 / wider, kernel);
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 1 << (BITS - 1), at = (line * length + first) * channels + channel;
        for (const weight of weights) {
          sum += data[at] * weight;
          at += channels;
        }
        found[(line * target + place) * channels + channel] = Math.min(255, Math.max(0, sum >> BITS));
      }
    }
  }
  return found;
}

/* Weights of the pixels from `first` up to `last`, whose sum is one. */
function integers(first, last, centre, scale, kernel) {
  const weights = Array.from({ length: last - first }, (_, place) => kernel((place + first - centre + 0.5) * scale));
  const sum = weights.reduce((before, weight) => before + weight, 0);
  return weights.map((weight) => {
    const part = (sum ? weight / sum : weight) * (1 << BITS);
    return Math.trunc(part < 0 ? part - 0.5 : part + 0.5);
  });
}
