// The table of points: sortable by its headings, in step with the plot.

const severalOf = (name) => filters.find((f) => f.name === name).values.length > 1;
const columns = [
  { id: 'trial', title: 'Trial', value: (i) => textOf('trial', i) },
  {
    id: 'method',
    title: 'Method',
    value: (i) => rank.get(textOf('method', i)),
    text: (i) => raw.methods[textOf('method', i)].label.split(',')[0],
  },
  severalOf('experiment') && {
    id: 'experiment',
    title: 'Experiment',
    value: (i) => textOf('experiment', i),
  },
  severalOf('backbone') && {
    id: 'backbone',
    title: 'Backbone',
    value: (i) => textOf('backbone', i),
  },
  severalOf('seed') && { id: 'seed', title: 'Seed', value: (i) => numbers.seed[i], number: true },
  {
    id: 'rate',
    title: () => rateName(),
    value: (i) => numbers.tradeoff_rate[i],
    text: (i) => rateText(numbers.tradeoff_rate[i]),
    number: true,
  },
  {
    id: 'accuracy',
    title: 'Test acc. [%]',
    value: (i) => numbers.test_accuracy[i],
    text: (i) => fixed(100 * numbers.test_accuracy[i], 2),
    number: true,
  },
  {
    id: 'validation',
    title: 'Val. acc. [%]',
    value: (i) => numbers.validation_accuracy[i],
    text: (i) => fixed(100 * numbers.validation_accuracy[i], 2),
    number: true,
  },
  {
    id: 'storage',
    title: 'Storage [KB]',
    value: (i) => numbers.storage_bytes[i],
    text: (i) => fixed(numbers.storage_bytes[i] / 1000, 1),
    number: true,
  },
  {
    id: 'storage_ratio',
    title: 'of dense',
    value: (i) => numbers.storage_ratio[i],
    text: (i) => percent(numbers.storage_ratio[i]),
    number: true,
  },
  {
    id: 'macs',
    title: 'MACs mean',
    value: (i) => numbers.macs_mean[i],
    text: (i) => macs(numbers.macs_mean[i]),
    number: true,
  },
  {
    id: 'macs_ratio',
    title: 'of dense',
    value: (i) => numbers.macs_mean_ratio[i],
    text: (i) => percent(numbers.macs_mean_ratio[i]),
    number: true,
  },
  {
    id: 'macs_max',
    title: 'MACs max',
    value: (i) => numbers.macs_max[i],
    text: (i) => macs(numbers.macs_max[i]),
    number: true,
  },
  timed && {
    id: 'latency',
    title: 'Latency [ms]',
    value: (i) => numbers.latency_seconds[i],
    text: (i) => (isTimed(i) ? fixed(1e3 * numbers.latency_seconds[i], 3) : none),
    number: true,
  },
  {
    id: 'budget',
    title: 'Budget',
    value: (i) => (isDense(i) ? 2 : missed(i) ? 0 : 1),
    text: (i) => (isDense(i) ? none : missed(i) ? 'NOT met' : 'met'),
  },
].filter(Boolean);

let tableRows = [];

function sortedRows(indices) {
  const { value } = columns.find((c) => c.id === state.sort.column);
  const sign = state.sort.down ? -1 : 1;
  // Missing values stay at the end, whichever way it is sorted.
  return [...indices].sort((a, b) => {
    const left = value(a),
      right = value(b);
    if (left === null || right === null) return (left === null) - (right === null) || a - b;
    const order =
      typeof left === 'string' ? left.localeCompare(right, 'en', { numeric: true }) : left - right;
    return sign * order || a - b;
  });
}

function sortBy(id) {
  const { sort } = state;
  const { number } = columns.find((c) => c.id === id);
  state.sort = { column: id, down: sort.column === id ? !sort.down : Boolean(number) };
  drawTable(tableRows);
  byId(`sort-${id}`).focus();
}

function drawTable(indices) {
  tableRows = sortedRows(indices);
  byId('table').tHead.replaceChildren(
    el(
      'tr',
      {},
      ...columns.map((c) => {
        const active = state.sort.column === c.id;
        const arrow = active ? (state.sort.down ? ' ▼' : ' ▲') : '';
        return el(
          'th',
          {
            scope: 'col',
            class: c.number ? 'number' : null,
            'aria-sort': active ? (state.sort.down ? 'descending' : 'ascending') : null,
          },
          el(
            'button',
            { type: 'button', id: `sort-${c.id}`, onclick: () => sortBy(c.id) },
            typeof c.title === 'function' ? c.title() : c.title,
            el('span', { 'aria-hidden': 'true' }, arrow),
          ),
        );
      }),
    ),
  );
  // A selected point is always among the rows that are drawn.
  const needed = tableRows.indexOf(state.selected) + 1;
  const count = Math.min(tableRows.length, Math.max(state.rows, needed));
  byId('table').tBodies[0].replaceChildren(...tableRows.slice(0, count).map(tableRow));
  setText(
    'table-note',
    count < tableRows.length
      ? `${whole(count)} of ${plural(tableRows.length, 'point')} are listed.`
      : `${plural(tableRows.length, 'point')}.`,
  );
  const more = (rows, words) =>
    el(
      'button',
      {
        type: 'button',
        onclick: () => {
          state.rows = rows;
          drawTable(tableRows);
        },
      },
      words,
    );
  byId('table-more').replaceChildren(
    ...(count < tableRows.length
      ? [more(count + 400, 'List 400 more'), more(Infinity, `List all ${whole(tableRows.length)}`)]
      : []),
  );
}

function tableRow(i) {
  const cells = columns.map((c, at) => {
    const text = c.text ? c.text(i) : c.value(i);
    if (at === 0)
      return el(
        'th',
        { scope: 'row' },
        el(
          'button',
          { type: 'button', class: 'pick', onclick: () => select(i), title: text },
          shorten(text, 40),
        ),
      );
    return el(
      'td',
      {
        class:
          [c.number && 'number', c.id === 'budget' && missed(i) && 'bad']
            .filter(Boolean)
            .join(' ') || null,
      },
      c.id === 'method' ? methodIcon(textOf('method', i)) : null,
      text,
    );
  });
  return el(
    'tr',
    {
      'data-point': i,
      class: missed(i) ? 'missed' : null,
      'aria-selected': String(i === state.selected),
      onclick: (event) => {
        if (!event.target.closest('button')) select(i);
      },
    },
    ...cells,
  );
}

function markSelectedRow() {
  const body = byId('table').tBodies[0];
  if (
    state.selected !== null &&
    !body.querySelector(`[data-point="${state.selected}"]`) &&
    tableRows.includes(state.selected)
  ) {
    drawTable(tableRows);
    return;
  }
  for (const row of body.rows)
    row.setAttribute('aria-selected', String(Number(row.dataset.point) === state.selected));
}
