// Methods side by side: one line per budget and R_r, one mark per method.
const MOST_LINES = 60;
const STATIC_METHODS = ['static_l1', 'fpgm', 'slimming', 'torch_pruning', 'legr', 'amc'];
const pairKey = (i, s, rate) => `${trialKey(i)}|${s}|${rate}`;

function drawMethods(indices) {
  const learned = indices.filter((i) => textOf('method', i) === 'learned');
  const settings = [...groupBy(learned, (i) => numbers.setting[i])].sort((a, b) =>
    textOf('setting_label', a[1][0]).localeCompare(textOf('setting_label', b[1][0]), 'en', {
      numeric: true,
    }),
  );
  const lines = [],
    headings = [];
  let y = 0;
  for (const [setting, members] of settings) {
    if (lines.length >= MOST_LINES) break;
    // On a narrow page a heading has two lines: the backbone, and the budgets.
    const words = textOf('setting_label', members[0]);
    y += narrow.matches ? 1.6 : 1;
    headings.push({
      y: narrow.matches ? y - 0.1 : y,
      lines: narrow.matches ? words.replace(', ', '\n').split('\n') : [words],
    });
    const rates = [...new Set(members.map((i) => numbers.tradeoff_rate[i]))].sort((a, b) => b - a);
    for (const rate of rates)
      lines.push({
        y: (y += 1),
        setting,
        rate,
        family: numbers.family[members[0]],
        s: numbers.budget_s[members[0]],
      });
  }
  if (!lines.length) {
    emptyChart('methods', 'No learned points are left by the filters.');
    setText('methods-note', '');
    legend('methods-legend', []);
    return;
  }
  const { traces, counts, present } = methodTraces(indices, lines);
  legend(
    'methods-legend',
    present.map((m) => [methodIcon(m), raw.methods[m].label]),
  );
  const total = settings.reduce(
    (sum, [, m]) => sum + new Set(m.map((i) => numbers.tradeoff_rate[i])).size,
    0,
  );
  draw('methods', traces, {
    height: 60 + 27 * (y + 1),
    margin: { l: 74, r: 12, t: 8, b: 48 },
    xaxis: {
      title: {
        text:
          state.comparison === 'accuracy'
            ? `${ACCURACIES[state.accuracy]} [%]`
            : `${ACCURACIES[state.accuracy]} minus learned [percentage points]`,
      },
      zeroline: state.comparison !== 'accuracy',
      zerolinecolor: colorOf('learned'),
      zerolinewidth: 2,
    },
    yaxis: {
      range: [y + 0.6, 0.4],
      tickvals: lines.map((l) => l.y),
      ticktext: lines.map((l) => `R<sub>r</sub> = ${l.rate}`),
      ticks: '',
    },
    annotations: headings.map((h) => ({
      x: 0,
      xref: 'paper',
      y: h.y,
      yref: 'y',
      xanchor: 'left',
      showarrow: false,
      align: 'left',
      text: h.lines
        .map((line) => `<b>${plain(shorten(line, narrow.matches ? 50 : 140))}</b>`)
        .join('<br>'),
      font: { size: narrow.matches ? 10 : 12, color: cssColor('--muted') },
    })),
  });
  const [low, high] = [Math.min(...counts), Math.max(...counts)];
  const averaged =
    state.comparison === 'accuracy'
      ? 'Mean'
      : 'Mean of the differences within a trial (same seed, same pretrained network)';
  const alone = ', so there are no bars, and small differences mean nothing';
  setText(
    'methods-note',
    `${averaged}, bars: standard error; ${countText(low, high)}${high === 1 ? alone : ''}. ` +
      (STATIC_METHODS.some((name) => present.includes(name))
        ? 'Static methods keep the storage budget of R_r = 0, the smallest, in every line. '
        : '') +
      (present.includes('cascade')
        ? 'The cascade stores two networks, each fine-tuned on as many images as the others. '
        : '') +
      (present.includes('dense') ? 'Dense has no budget.' : '') +
      (total > lines.length
        ? ` The first ${lines.length} of ${total} lines are drawn: narrow the filters for the others.`
        : ''),
  );
}

function methodTraces(indices, lines) {
  const traces = [],
    counts = [];
  const present = Object.keys(raw.methods).filter((m) =>
    indices.some((i) => textOf('method', i) === m),
  );
  const reference = new Map(
    indices
      .filter((i) => textOf('method', i) === 'learned')
      .map((i) => [
        pairKey(i, numbers.budget_s[i], numbers.tradeoff_rate[i]),
        numbers[state.accuracy][i],
      ]),
  );
  const members = groupBy(indices, (i) =>
    isDense(i)
      ? `dense|${numbers.family[i]}`
      : `${textOf('method', i)}|${numbers.setting[i]}|${numbers.tradeoff_rate[i]}`,
  );
  present.forEach((method, at) => {
    if (state.comparison !== 'accuracy' && method === 'learned') return;
    const shift = (at - (present.length - 1) / 2) * 0.13;
    const x = [],
      y = [],
      error = [],
      hover = [];
    for (const line of lines) {
      const found =
        (method === 'dense'
          ? members.get(`dense|${line.family}`)
          : members.get(`${method}|${line.setting}|${line.rate}`) ||
            members.get(`${method}|${line.setting}|null`)) || [];
      const values =
        state.comparison === 'accuracy'
          ? found.map((i) => numbers[state.accuracy][i])
          : found.map((i) => {
              const own = reference.get(pairKey(i, line.s, line.rate));
              return own === undefined ? null : numbers[state.accuracy][i] - own;
            });
      const s = statistics(values);
      if (s.mean === null) continue;
      counts.push(s.n);
      x.push(100 * s.mean);
      y.push(line.y + shift);
      error.push(100 * (s.error || 0));
      hover.push(
        `<b>${plain(raw.methods[method].label)}</b>, R<sub>r</sub> = ${line.rate}<br>${plusMinus(s, 2, 100)} (n = ${s.n})`,
      );
    }
    traces.push({
      name: raw.methods[method].label,
      type: 'scatter',
      mode: 'markers',
      x,
      y,
      text: hover,
      hoverinfo: 'text',
      marker: methodMarker(method, 9),
      error_x: {
        type: 'data',
        array: error,
        visible: error.some((e) => e > 0),
        thickness: 1.3,
        width: 3,
        color: colorOf(method),
      },
    });
  });
  return { traces, present, counts: counts.length ? counts : [0] };
}
