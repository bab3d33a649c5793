// Wiring: header, filters, controls; what is drawn again after which change.

function drawHeader() {
  const h = raw.header;
  setText('title', h.experiments.join(' + '));
  const [first, last] = [h.first, h.last].map((text) => text.slice(0, 16).replace('T', ' '));
  const [low, high] = h.repetitions;
  setText(
    'facts',
    [
      plural(h.trials, 'trial'),
      plural(h.points, 'measured point'),
      `${plural(h.seeds, 'seed')} (n = ${low === high ? low : `${low}–${high}`} per learned setting)`,
      `backbone ${filters.find((f) => f.name === 'backbone').values.join(', ')}`,
      `data ${filters[0].values.join(', ')}`,
      `measured ${first}${first === last ? '' : ` to ${first.slice(0, 10) === last.slice(0, 10) ? last.slice(11) : last}`} UTC`,
    ].join(' · '),
  );
}

// Filters.
function setFilter(name, value, hide) {
  const hidden = state.hidden[name];
  if (hide) hidden.add(value);
  else hidden.delete(value);
  drawFilters();
  drawAll();
}
function setOnly(name, value) {
  const { values } = filters.find((f) => f.name === name);
  state.hidden[name] = new Set(value === null ? [] : values.filter((v) => v !== value));
  drawFilters();
  drawAll();
}

function drawFilters() {
  const focused = document.activeElement && document.activeElement.id;
  const shown = filters.filter((f) => f.values.length > 1);
  const groups = shown.map((f) => {
    const hidden = state.hidden[f.name];
    const label = f.shown || String;
    if (f.select) {
      const left = f.values.filter((v) => !hidden.has(v));
      const at = hidden.size ? f.values.indexOf(left[0]) : -1;
      return dropdown(
        f.title,
        `filter-${f.name}`,
        [[-1, `all ${f.values.length}`], ...f.values.map((v, n) => [n, shorten(v, 90)])],
        at,
        (n) => setOnly(f.name, Number(n) < 0 ? null : f.values[Number(n)]),
      );
    }
    return el(
      'fieldset',
      { class: 'filter' },
      el('legend', {}, typeof f.title === 'function' ? f.title() : f.title),
      ...f.values.map((value, n) =>
        el(
          'label',
          {},
          el('input', {
            type: f.single ? 'radio' : 'checkbox',
            name: `filter-${f.name}`,
            id: `filter-${f.name}-${n}`,
            value: String(value),
            checked: !hidden.has(value),
            onchange: (event) =>
              f.single ? setOnly(f.name, value) : setFilter(f.name, value, !event.target.checked),
          }),
          f.name === 'method' ? methodIcon(value) : null,
          label(value),
        ),
      ),
    );
  });
  const any = shown.some((f) => !f.single && state.hidden[f.name].size);
  const reset = el(
    'button',
    {
      type: 'button',
      id: 'filter-reset',
      disabled: !any,
      onclick: () => {
        for (const f of filters) if (!f.single) state.hidden[f.name] = new Set();
        drawFilters();
        drawAll();
      },
    },
    'Show all',
  );
  byId('filters').replaceChildren(...groups, ...(shown.length ? [reset] : []));
  byId('filters').hidden = !shown.length;
  if (focused && byId(focused)) byId(focused).focus();
}

// Controls above the charts.
function drawControls() {
  const set = (name, redraw) => (value) => {
    state[name] = value;
    redraw();
  };
  const repeated = raw.header.repetitions[1] > 1;
  byId('front-controls').replaceChildren(
    choice(
      'Accuracy',
      'accuracy',
      [
        ['test_accuracy', 'Test'],
        ['validation_accuracy', 'Validation'],
      ],
      state.accuracy,
      set('accuracy', drawAll),
    ),
    choice(
      'Cost',
      'cost',
      Object.entries(COSTS).map(([k, c]) => [k, c.label]),
      state.cost,
      set('cost', drawFrontSection),
    ),
    choice(
      'Front chosen on',
      'chosen',
      [
        ['validation_accuracy', 'Validation'],
        ['test_accuracy', 'Test'],
      ],
      state.chosen,
      set('chosen', drawFrontSection),
    ),
    ...(repeated
      ? [
          choice(
            'Repetitions',
            'seeds',
            [
              ['mean', 'Mean ± error'],
              ['each', 'Each'],
            ],
            state.seeds,
            set('seeds', drawFrontSection),
          ),
        ]
      : []),
  );
  byId('methods-controls').replaceChildren(
    choice(
      'Show',
      'comparison',
      [
        ['accuracy', 'Accuracy'],
        ['difference', 'Difference from learned'],
      ],
      state.comparison,
      set('comparison', () => drawMethods(visible())),
    ),
  );
  const recorded = Object.entries(raw.metrics).filter(([name]) =>
    raw.curves.some((c) => c.values[name]),
  );
  if (recorded.length) {
    state.metric = recorded[0][0];
    byId('curves-controls').replaceChildren(
      dropdown(
        'Metric',
        'metric',
        recorded,
        state.metric,
        set('metric', () => drawCurves(visible())),
      ),
    );
  }
}

// The pictures against R_r are of one setting: averaging over several would mean nothing.
function drawSettingControl(indices) {
  const options = new Map(
    indices.filter((i) => !isDense(i)).map((i) => [numbers.setting[i], textOf('setting_label', i)]),
  );
  if (!options.size)
    for (const i of indices) options.set(numbers.setting[i], textOf('setting_label', i));
  const sorted = [...options].sort((a, b) => a[1].localeCompare(b[1], 'en', { numeric: true }));
  if (!options.has(Number(state.setting)) || state.setting === null)
    state.setting = sorted.length ? sorted[0][0] : null;
  byId('tradeoff-controls').replaceChildren(
    ...(sorted.length
      ? [
          dropdown('Backbone and budgets', 'setting', sorted, state.setting, (value) => {
            state.setting = Number(value);
            drawTradeoff(visible());
          }),
        ]
      : []),
  );
}

function followSelection() {
  if (state.selected !== null && !isDense(state.selected))
    state.setting = numbers.setting[state.selected];
}

function select(i) {
  const before = {
    setting: state.setting,
    trial: state.selected === null ? null : trialKey(state.selected),
  };
  state.selected = i;
  followSelection();
  const shown = visible();
  moveRing();
  drawPanel();
  if (state.setting !== before.setting) {
    drawSettingControl(shown);
    drawTradeoff(shown);
  }
  if (raw.curves.length > 1 && trialKey(i) !== before.trial) drawCurves(shown);
  markSelectedRow();
}

function drawFrontSection() {
  drawFront(visible());
  drawPanel();
}

function drawAll() {
  const shown = visible();
  drawFrontSection();
  drawSettingControl(shown);
  drawTradeoff(shown);
  drawMethods(shown);
  drawCurves(shown);
  drawTable(shown);
}

// How it was made.
function drawMade() {
  const { common, varying, trials } = raw.configuration;
  const names = new Map(all.map((i) => [textOf('config_hash', i), textOf('trial', i)]));
  const line = (title, text) =>
    text ? el('div', {}, el('p', { class: 'note' }, title), commandBox(text)) : null;
  const versions = raw.versions.map((v) =>
    el(
      'li',
      {},
      `${Object.entries(v.versions)
        .map(([n, x]) => `${n} ${x === null ? 'not installed' : x}`)
        .join(', ')} (${plural(v.points, 'point')})`,
    ),
  );
  byId('made').replaceChildren(
    line('The same experiment once more', raw.made.again),
    line('This page', raw.made.with),
    el(
      'p',
      { class: 'note' },
      `Read from ${raw.made.folder}; written ${raw.header.written.slice(0, 16).replace('T', ' ')} UTC with plotly.js ${Plotly.version}. The last step of every trial and method is shown.`,
    ),
    el('h3', {}, 'Versions'),
    el('ul', {}, ...versions),
    ...(varying.length
      ? [
          el(
            'details',
            { open: Object.keys(trials).length <= 12 },
            el(
              'summary',
              {},
              `What differs between ${plural(Object.keys(trials).length, 'configuration')} (${plural(varying.length, 'field')})`,
            ),
            el(
              'div',
              { class: 'scroll' },
              el(
                'table',
                { class: 'small' },
                el(
                  'thead',
                  {},
                  el('tr', {}, ...['trial', ...varying].map((n) => el('th', { scope: 'col' }, n))),
                ),
                el(
                  'tbody',
                  {},
                  ...Object.entries(trials).map(([hash, values]) =>
                    el(
                      'tr',
                      {},
                      el('th', { scope: 'row' }, names.get(hash) || hash),
                      ...values.map((v) => el('td', {}, settingText(v))),
                    ),
                  ),
                ),
              ),
            ),
          ),
        ]
      : []),
    Object.keys(trials).length
      ? el(
          'details',
          {},
          el('summary', {}, varying.length ? 'What all configurations share' : 'Configuration'),
          pairs(Object.entries(common).map(([n, v]) => [n, settingText(v)])),
        )
      : el('p', { class: 'note' }, 'The rows carry no configuration (schema version 1).'),
  );
}

// The learned network that validation likes best, on the front where there is one.
function firstSelection() {
  const shown = visible();
  const marks = makeMarks(shown).filter((m) => m.method === 'learned');
  const front = paretoFront(
    makeMarks(shown),
    (m) => m.x.mean,
    (m) => m.chosen,
  ).filter((m) => m.method === 'learned');
  const candidates = (front.length ? front : marks).sort((a, b) => b.chosen - a.chosen);
  if (candidates.length) {
    state.selected = bestMember(candidates[0].members);
    followSelection();
  }
}

function fitPrint(width) {
  for (const id of drawn)
    if (byId(id) && byId(id).data)
      Plotly.relayout(id, width ? { width, autosize: false } : { width: null, autosize: true });
}

drawHeader();
drawFilters();
drawControls();
firstSelection();
drawAll();
drawMade();
listenToFront();
for (const query of [dark, narrow])
  query.addEventListener('change', () => {
    drawFilters();
    drawAll();
  });
window.addEventListener('beforeprint', () => fitPrint(640));
window.addEventListener('afterprint', () => fitPrint(null));
