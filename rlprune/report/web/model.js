// What is shown: the points, the filters, means over repetitions, the front.

const raw = JSON.parse(document.getElementById('data').textContent);

const texts = raw.texts,
  numbers = raw.numbers;
const all = Array.from({ length: raw.count }, (_, i) => i);
const textOf = (name, i) => texts[name].values[texts[name].codes[i]];
const listOf = (name, i) => raw.lists[raw.listCodes[name][i]];
const isDense = (i) => textOf('method', i) === 'dense';
// Networks that nothing limited cannot miss a budget.
const missed = (i) => !isDense(i) && numbers.budgets_met[i] === 0;
const trialKey = (i) =>
  JSON.stringify(['experiment', 'trial', 'config_hash'].map((n) => textOf(n, i)));

const ACCURACIES = { test_accuracy: 'test accuracy', validation_accuracy: 'validation accuracy' };
const COSTS = {
  storage_bytes: { label: 'Storage', axis: 'storage [KB]', scale: 1e-3 },
  macs_mean: { label: 'MACs, mean', axis: 'MACs per image, mean [M]', scale: 1e-6 },
  macs_max: { label: 'MACs, max', axis: 'MACs of the most expensive image [M]', scale: 1e-6 },
};
// Latencies are there only where `rlprune bench` has measured some.
const timed = Boolean(numbers.latency_seconds);
if (timed)
  COSTS.latency_seconds = { label: 'Latency', axis: 'latency [ms per image]', scale: 1e3 };
const isTimed = (i) => timed && numbers.latency_seconds[i] !== null;
const timedWith = (i) =>
  `batch ${numbers.latency_batch[i]}, ${plural(numbers.latency_threads[i], 'thread')}, ${textOf('latency_machine', i)}`;

const state = {
  accuracy: 'test_accuracy',
  cost: 'storage_bytes',
  chosen: 'validation_accuracy', // what decides who is on the front
  seeds: 'mean',
  comparison: 'accuracy',
  metric: null,
  setting: null, // of the pictures against R_r
  selected: null,
  hidden: {}, // filter name -> Set of the values that are not shown
  sort: { column: 'accuracy', down: true },
  rows: 100,
};

// Filters. Accuracies on different images must not share a picture: one data set at a time.
const rank = new Map(Object.keys(raw.methods).map((name, at) => [name, at]));
const filters = [
  { name: 'dataset', title: 'Data set', of: (i) => textOf('dataset', i), single: true },
  { name: 'experiment', title: 'Experiment', of: (i) => textOf('experiment', i) },
  { name: 'backbone', title: 'Backbone', of: (i) => textOf('backbone', i) },
  {
    name: 'method',
    title: 'Method',
    of: (i) => textOf('method', i),
    shown: (v) => raw.methods[v].label,
  },
  { name: 'rate', title: () => rateName(), of: (i) => numbers.tradeoff_rate[i] },
  { name: 'seed', title: 'Seed', of: (i) => numbers.seed[i] },
  { name: 'setting', title: 'Budgets', of: (i) => textOf('setting_label', i), select: true },
];
for (const filter of filters) {
  // Points without an R_r (dense, static L1) are references: they pass that filter.
  const found = [...new Set(all.map(filter.of))].filter((v) => v !== null);
  const order =
    filter.name === 'method'
      ? (a, b) => rank.get(a) - rank.get(b)
      : (a, b) =>
          typeof a === 'number'
            ? a - b
            : String(a).localeCompare(String(b), 'en', { numeric: true });
  filter.values = found.sort(order);
  state.hidden[filter.name] = new Set(filter.single ? filter.values.slice(1) : []);
}

function visible() {
  const active = filters.filter((f) => state.hidden[f.name].size);
  return all.filter((i) => active.every((f) => !state.hidden[f.name].has(f.of(i))));
}

function groupBy(indices, key) {
  const groups = new Map();
  for (const i of indices) {
    const k = key(i);
    if (!groups.has(k)) groups.set(k, []);
    groups.get(k).push(i);
  }
  return groups;
}

// Repetitions: equal in everything but the seed.
const repetitionKey = (i) =>
  [numbers.setting[i], textOf('method', i), numbers.tradeoff_rate[i]].join('|');

// Mean, standard error (n - 1 in the deviation; null for n = 1) and n of a column.
function statistics(values) {
  const found = values.filter((v) => v !== null);
  const n = found.length;
  if (!n) return { mean: null, error: null, n };
  // Twelve digits: equal numbers added in another order must still tie.
  const mean = Number((found.reduce((a, b) => a + b, 0) / n).toPrecision(12));
  if (n === 1) return { mean, error: null, n };
  const spread = found.reduce((a, v) => a + (v - mean) ** 2, 0) / (n - 1);
  return { mean, error: Math.sqrt(spread / n), n };
}
const statisticsOf = (name, indices) => statistics(indices.map((i) => numbers[name][i]));

// What the scatter plot draws: one mark per point, or per group of repetitions.
function makeMarks(indices) {
  const groups =
    state.seeds === 'mean'
      ? [...groupBy(indices, repetitionKey).values()]
      : indices.map((i) => [i]);
  return groups.map((members) => ({
    members,
    method: textOf('method', members[0]),
    y: statisticsOf(state.accuracy, members),
    x: statisticsOf(state.cost, members),
    chosen: statisticsOf(state.chosen, members).mean,
    missed: members.some(missed),
  }));
}

// Marks that no other one beats: less or equal cost, more or equal accuracy, and one of them
// better. Equal marks all stay; marks without a number never do.
function paretoFront(marks, cost, gain) {
  const known = marks.filter((m) => cost(m) !== null && gain(m) !== null);
  known.sort((a, b) => cost(a) - cost(b) || gain(b) - gain(a));
  const front = [];
  let best = -Infinity,
    bestCost = null;
  for (const mark of known) {
    const better = gain(mark) > best;
    if (better || (gain(mark) === best && cost(mark) === bestCost)) front.push(mark);
    if (better) {
      best = gain(mark);
      bestCost = cost(mark);
    }
  }
  return front;
}

const bestMember = (members) =>
  members.reduce(
    (best, i) => (numbers.validation_accuracy[i] > numbers.validation_accuracy[best] ? i : best),
    members[0],
  );
