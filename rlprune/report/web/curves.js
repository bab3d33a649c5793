// Learning curves: faint as recorded (few curves), bold as a moving mean.
const PALETTE = [
  '#0b6fb8',
  '#e07b00',
  '#2a9d5c',
  '#8a5fb0',
  '#c02b2b',
  '#00898f',
  '#b0578d',
  '#7a6a00',
  '#5b6b7b',
  '#6f4a2d',
];
const FEW = 3;

function drawCurves(indices) {
  if (!raw.curves.length) {
    byId('curves').hidden = true;
    setText(
      'curves-note',
      'There are none: the folder holds no updates.parquet (of a run) and no updates/ (of a sweep).',
    );
    return;
  }
  const settingOf = new Map(
    indices
      .filter((i) => textOf('method', i) === 'learned' || !indices.length)
      .map((i) => [textOf('trial', i), i]),
  );
  const shown = raw.curves.filter((c) => settingOf.has(c.trial) && c.values[state.metric]);
  if (!shown.length) {
    emptyChart('curves', 'No learning curves are left by the filters.');
    setText('curves-note', '');
    legend('curves-legend', []);
    return;
  }
  const label = (c) => textOf('setting_label', settingOf.get(c.trial));
  const chosen = state.selected === null ? null : textOf('trial', state.selected);
  const traces = [],
    items = [];
  [...groupBy(shown, label)].forEach(([name, curves], at) => {
    const color = PALETTE[at % PALETTE.length];
    items.push([lineIcon(color), name]);
    if (shown.length <= FEW)
      traces.push({
        ...curveTrace(curves, (v) => v),
        line: { color, width: 1 },
        opacity: 0.45,
        hoverinfo: 'skip',
      });
    traces.push({
      ...curveTrace(curves, movingMean),
      line: { color, width: shown.length > 12 ? 1.2 : 2 },
      opacity: shown.length > FEW ? 0.75 : 1,
    });
  });
  const marked = shown.filter((c) => c.trial === chosen);
  if (marked.length && shown.length > 1) {
    traces.push({
      ...curveTrace(marked, movingMean),
      line: { color: cssColor('--ink'), width: 3 },
    });
    items.push([lineIcon(cssColor('--ink')), 'selected trial']);
  }
  legend('curves-legend', items.length > 1 ? items : []);
  draw('curves', traces, {
    height: 400,
    xaxis: { title: { text: 'PPO update' } },
    yaxis: { title: { text: raw.metrics[state.metric] } },
  });
  const most = Math.max(...shown.map((c) => c.size));
  setText(
    'curves-note',
    `${plural(shown.length, 'trial')}. Lines are moving means over a twentieth of the training${shown.length <= FEW ? '; faint: as recorded' : ''}.` +
      (most > 1
        ? ` Long trainings are thinned: a value is the mean of up to ${most} updates.`
        : ''),
  );
}

const means = new WeakMap(); // of all curves, again after every click: worth keeping
function movingMean(values) {
  const window = Math.max(1, Math.floor(values.length / 20));
  if (!means.has(values))
    means.set(
      values,
      values.map((_, at) => statistics(values.slice(Math.max(0, at - window + 1), at + 1)).mean),
    );
  return means.get(values);
}

// Several curves in one trace, with gaps between them: many small traces are slow.
function curveTrace(curves, smooth) {
  const x = [],
    y = [],
    text = [];
  for (const c of curves) {
    const name = plain(shorten(c.trial, 60));
    smooth(c.values[state.metric]).forEach((value, at) => {
      x.push(c.values.update[at]);
      y.push(value);
      text.push(
        `${name}<br>update ${Math.round(c.values.update[at])}: ${value === null ? none : Number(value.toPrecision(4))}`,
      );
    });
    x.push(null);
    y.push(null);
    text.push('');
  }
  return { type: 'scatter', mode: 'lines', x, y, text, hoverinfo: 'text' };
}
