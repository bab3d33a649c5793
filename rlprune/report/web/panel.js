// The selected point: its layers, its numbers, its configuration, and how to get it.

function drawPanel() {
  const panel = byId('panel');
  if (state.selected === null) {
    panel.replaceChildren(
      el('h3', {}, 'No point selected'),
      el('p', { class: 'note' }, 'Click a mark of the plot or a row of the table.'),
    );
    return;
  }
  const i = state.selected,
    method = textOf('method', i),
    rate = numbers.tradeoff_rate[i];
  panel.replaceChildren(
    ...givenOnes([
      el(
        'p',
        { class: 'kind' },
        methodIcon(method),
        raw.methods[method].label,
        rate === null ? null : el('span', {}, ', R', el('sub', {}, 'r'), ` = ${rate}`),
        `, seed ${numbers.seed[i]}`,
      ),
      el('h3', { id: 'panel-title' }, textOf('trial', i)),
      el('p', { class: 'badges' }, ...badges(i)),
      otherSeeds(i),
      el(
        'p',
        { class: 'legend' },
        el('span', {}, svgIcon(14, 'M1 2h12v10H1z', { fill: cssColor('--line') }), 'stored'),
        el(
          'span',
          {},
          svgIcon(14, 'M3 2h8v10H3z', { fill: colorOf(method) }),
          'computed per image, ± std',
        ),
      ),
      el('div', {
        id: 'layers',
        class: 'chart',
        role: 'img',
        'aria-label': 'Channels kept per layer',
      }),
      keyNumbers(i),
      command(i),
      el('details', {}, el('summary', {}, 'All numbers'), allNumbers(i)),
      el('details', {}, el('summary', {}, 'Configuration'), configurationOf(i)),
    ]),
  );
  drawLayers(i);
}

function badges(i) {
  const found = [];
  const budget = isDense(i)
    ? ['plain', 'no budget']
    : missed(i)
      ? ['bad', 'budget NOT met']
      : ['good', 'budget met'];
  found.push(el('span', { class: `badge ${budget[0]}` }, budget[1]));
  const mark = shownMarks.find((m) => m.members.includes(i));
  if (!mark) found.push(el('span', { class: 'badge plain' }, 'hidden by the filters'));
  else if (shownFront.has(mark)) found.push(el('span', { class: 'badge good' }, 'on the front'));
  return found;
}

// A mark may stand for several repetitions: each can be looked at.
function otherSeeds(i) {
  const key = repetitionKey(i);
  const members = all.filter((j) => repetitionKey(j) === key);
  if (members.length < 2) return null;
  return el(
    'p',
    { class: 'seeds' },
    'Repetitions: ',
    ...members.map((j) =>
      el(
        'button',
        {
          type: 'button',
          'aria-pressed': String(j === i),
          title: textOf('trial', j),
          onclick: () => select(j),
        },
        `seed ${numbers.seed[j]}`,
      ),
    ),
  );
}

function drawLayers(i) {
  const names = listOf('layer_names', i),
    x = names.map((_, at) => at + 1);
  if (!names.length) {
    emptyChart('layers', 'No layers were recorded.');
    return;
  }
  const computed = listOf('keep_ratio_mean', i),
    spread = listOf('keep_ratio_std', i),
    varying = listOf('image_dependent_ratio', i), // empty: not counted
    stored = listOf('stored_ratio', i);
  const choice = (at) =>
    varying.length ? `<br>channels that depend on the image ${percent(varying[at])}` : '';
  const hover = names.map(
    (name, at) =>
      `<b>${plain(name)}</b><br>computed ${percent(computed[at])} ± ${percent(spread[at])} (over images)${choice(at)}<br>stored ${percent(stored[at])}`,
  );
  const color = colorOf(textOf('method', i));
  draw(
    'layers',
    [
      {
        type: 'bar',
        name: 'stored',
        x,
        y: stored.map((v) => 100 * v),
        text: hover,
        hoverinfo: 'text',
        textposition: 'none',
        marker: { color: cssColor('--line') },
      },
      {
        type: 'bar',
        name: 'computed per image, ± std',
        x,
        y: computed.map((v) => 100 * v),
        text: hover,
        hoverinfo: 'text',
        textposition: 'none',
        width: 0.45,
        marker: { color },
        error_y: {
          type: 'data',
          array: spread.map((v) => 100 * v),
          visible: spread.some((v) => v > 0),
          thickness: 1.4,
          width: 3,
          color: cssColor('--ink'),
        },
      },
    ],
    {
      height: 205,
      barmode: 'overlay',
      bargap: 0.15,
      margin: { l: 44, r: 4, t: 4, b: 40 },
      xaxis: {
        title: { text: 'layer', standoff: 4 },
        dtick: Math.max(1, Math.ceil(names.length / 12)),
        tick0: 1,
        showgrid: false,
      },
      yaxis: { title: { text: 'channels [%]' }, range: [0, 104], dtick: 25 },
    },
  );
}

const pairs = (rows) =>
  el('dl', {}, ...rows.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));

function keyNumbers(i) {
  const of = (name) => numbers[name][i];
  const limit = (value, text) => (value === null ? '' : ` (budget ${text(value)})`);
  return pairs([
    ['Test accuracy', percent(of('test_accuracy'), 2)],
    ['Validation accuracy', percent(of('validation_accuracy'), 2)],
    [
      'Storage',
      `${bytes(of('storage_bytes'))}${limit(of('storage_budget_bytes'), bytes)}, ${percent(of('storage_ratio'))} of dense`,
    ],
    [
      'MACs, mean',
      `${macs(of('macs_mean'))}${limit(of('compute_mean_budget_macs'), macs)}, ${percent(of('macs_mean_ratio'))} of dense`,
    ],
    ['MACs, max', `${macs(of('macs_max'))}${limit(of('compute_max_budget_macs'), macs)}`],
    ...(isTimed(i) ? [['Latency', latency(i)]] : []),
    [
      'Backbone, data',
      `${textOf('backbone', i)}${of('width') === 1 ? '' : ` x${of('width')}`}, ${textOf('dataset', i)}`,
    ],
  ]);
}

function latency(i) {
  const ms = (name) => fixed(1e3 * numbers[name][i], 3);
  const ratio = numbers.latency_ratio[i];
  return `${ms('latency_seconds')} ms per image (${ms('latency_p25_seconds')} to ${ms('latency_p75_seconds')})${ratio === null ? '' : `, ${percent(ratio)} of dense`}; ${timedWith(i)}`;
}

function allNumbers(i) {
  const skip = new Set(['family', 'setting', 'budgets_met']);
  return pairs([
    ...Object.keys(texts)
      .filter((n) => n !== 'setting_label')
      .map((n) => [n, textOf(n, i) || none]),
    ...Object.keys(numbers)
      .filter((n) => !skip.has(n))
      .map((n) => [
        n,
        numbers[n][i] === null
          ? none
          : numbers[n][i].toLocaleString('en-US', { maximumSignificantDigits: 9 }),
      ]),
    ['budgets_met', numbers.budgets_met[i] ? 'yes' : 'NO'],
  ]);
}

function command(i) {
  const text = raw.commands.values[raw.commands.codes[i]];
  return el(
    'div',
    { class: 'command' },
    text ? commandBox(text) : null,
    el('p', { class: 'note' }, raw.notes.values[raw.notes.codes[i]]),
  );
}

function commandBox(text) {
  const copy = el(
    'button',
    {
      type: 'button',
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(text);
          copy.textContent = 'Copied';
        } catch {
          copy.textContent = 'Select and copy';
        }
        setTimeout(() => {
          copy.textContent = 'Copy';
        }, 2000);
      },
    },
    'Copy',
  );
  return el(
    'div',
    { class: 'box' },
    el('code', {}, ...text.split(' ').flatMap((word) => [el('span', {}, word), ' '])),
    copy,
  );
}

const settingText = (value) =>
  value === undefined ? none : typeof value === 'string' ? value : JSON.stringify(value);

function configurationOf(i) {
  const { common, varying, trials } = raw.configuration;
  const own = trials[textOf('config_hash', i)];
  if (!own)
    return el(
      'p',
      { class: 'note' },
      'Not recorded: the row is of schema version 1, and the folder has no config.yaml of it.',
    );
  return el(
    'div',
    {},
    varying.length ? el('p', { class: 'note' }, 'Differs between trials:') : null,
    varying.length ? pairs(varying.map((name, at) => [name, settingText(own[at])])) : null,
    varying.length ? el('p', { class: 'note' }, 'The same in all:') : null,
    pairs(Object.entries(common).map(([name, value]) => [name, settingText(value)])),
  );
}
