// Small helpers: elements (text is only ever set as text), controls, numbers in words.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null)
      node.setAttribute(name, value === true ? '' : value);
  }
  node.append(
    ...givenOnes(children).map((child) =>
      child instanceof Node ? child : document.createTextNode(String(child)),
    ),
  );
  return node;
}
const givenOnes = (children) => children.filter((child) => child !== null);
const byId = (id) => document.getElementById(id);
const setText = (id, text) => {
  byId(id).textContent = text;
};

// Marks and lines as in the charts, for the filters and the legends.
const SHAPES = {
  circle: 'M7 2a5 5 0 1 0 .01 0z',
  'square-open': 'M2.5 2.5h9v9h-9z',
  'triangle-up-open': 'M7 2l5.3 9.6H1.7z',
  'diamond-open': 'M7 1.2L12.8 7 7 12.8 1.2 7z',
  'pentagon-open': 'M7 1.2l5.7 4.2-2.2 6.7h-7L1.3 5.4z',
  'triangle-down-open': 'M7 12L1.7 2.4h10.6z',
  'triangle-left-open': 'M2 7l9.6-5.3v10.6z',
  'triangle-right-open': 'M12 7L2.4 1.7v10.6z',
  'hexagon-open': 'M4 1.8h6L13 7l-3 5.2H4L1 7z',
  'octagon-open': 'M4.7 1.5h4.6l3.2 3.2v4.6l-3.2 3.2H4.7L1.5 9.3V4.7z',
  'hourglass-open': 'M2.5 1.5h9L7 7l4.5 5.5h-9L7 7z',
  'diamond-tall-open': 'M7 .8L10.8 7 7 13.2 3.2 7z',
  'star-open': 'M7 1l1.8 3.9 4.2.5-3.1 2.9.8 4.2L7 10.4l-3.7 2.1.8-4.2L1 5.4l4.2-.5z',
  cross: 'M2.5 2.5l9 9M11.5 2.5l-9 9',
};
function svgIcon(width, path, attributes) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const shape = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  for (const [name, value] of Object.entries({
    viewBox: `0 0 ${width} 14`,
    width,
    height: 14,
    class: 'icon',
    'aria-hidden': 'true',
  }))
    svg.setAttribute(name, value);
  for (const [name, value] of Object.entries({
    d: path,
    fill: 'none',
    'stroke-width': 2,
    ...attributes,
  }))
    shape.setAttribute(name, value);
  svg.append(shape);
  return svg;
}
function methodIcon(method) {
  const { symbol } = raw.methods[method],
    color = colorOf(method);
  return svgIcon(14, SHAPES[symbol], {
    stroke: color,
    fill: symbol.endsWith('-open') ? 'none' : color,
  });
}
const lineIcon = (color, dash) =>
  svgIcon(26, 'M0 7h26', {
    stroke: color,
    'stroke-dasharray': { dot: '2 3', dash: '7 4', dashdot: '7 3 2 3' }[dash] || 'none',
  });
function legend(id, items) {
  byId(id).replaceChildren(...items.map(([icon, text]) => el('span', {}, icon, text)));
}

// A row of choices of which one holds; real radio buttons, for the keyboard.
function choice(legend, name, options, current, changed) {
  return el(
    'fieldset',
    { class: 'choice' },
    el('legend', {}, legend),
    el(
      'span',
      { class: 'segments' },
      ...options.map(([value, label]) =>
        el(
          'label',
          {},
          el('input', {
            type: 'radio',
            name,
            value,
            checked: value === current,
            onchange: () => changed(value),
          }),
          el('span', {}, label),
        ),
      ),
    ),
  );
}

function dropdown(legend, id, options, current, changed) {
  const select = el(
    'select',
    { id, onchange: (event) => changed(event.target.value) },
    ...options.map(([value, label]) =>
      el('option', { value, selected: String(value) === String(current) }, label),
    ),
  );
  return el('label', { class: 'dropdown' }, el('span', {}, legend), select);
}

const rateName = () => el('span', {}, 'R', el('sub', {}, 'r'));
const none = '–';
const fixed = (value, digits) =>
  value === null || value === undefined ? none : value.toFixed(digits);
const percent = (value, digits = 1) =>
  value === null || value === undefined ? none : `${(100 * value).toFixed(digits)} %`;
const whole = (value) =>
  value === null || value === undefined ? none : Math.round(value).toLocaleString('en-US');
function scaled(value, units) {
  if (value === null || value === undefined) return none;
  let at = 0;
  while (at < units.length - 1 && Math.abs(value) >= 1000) {
    value /= 1000;
    at += 1;
  }
  return `${at || !Number.isInteger(value) ? Number(value.toPrecision(4)) : value} ${units[at]}`.trim();
}
const bytes = (value) => scaled(value, ['bytes', 'KB', 'MB', 'GB']);
const macs = (value) => scaled(value, ['', 'k', 'M', 'G', 'T']);
const rateText = (value) => (value === null ? none : String(value));
const plusMinus = ({ mean, error }, digits, scale = 1) =>
  fixed(mean === null ? null : mean * scale, digits) +
  (error === null ? '' : ` ± ${fixed(error * scale, digits)}`);
const plural = (n, word) => `${n.toLocaleString('en-US')} ${word}${n === 1 ? '' : 's'}`;
const shorten = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// plotly reads a few HTML tags in texts: names must not become any.
const plain = (value) =>
  String(value).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
