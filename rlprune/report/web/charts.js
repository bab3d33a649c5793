// What all charts share, and the charts against R_r.

const dark = window.matchMedia('(prefers-color-scheme: dark)');
const coarse = window.matchMedia('(pointer: coarse)');
const narrow = window.matchMedia('(max-width: 640px)');
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colorOf = (method) => raw.methods[method][dark.matches ? 'dark' : 'color'];
const DASHES = { '-': 'solid', '--': 'dash', '-.': 'dashdot' };
const drawn = new Set();

function draw(id, traces, layout) {
  const ink = cssColor('--ink'),
    grid = cssColor('--line');
  const axis = {
    gridcolor: grid,
    linecolor: grid,
    zerolinecolor: grid,
    zeroline: false,
    automargin: true,
    ticks: 'outside',
    tickcolor: grid,
  };
  const { xaxis, yaxis, ...rest } = layout;
  drawn.add(id);
  byId(id).style.height = `${rest.height}px`; // also while the chart is drawn, and on paper
  return Plotly.react(
    id,
    traces,
    {
      font: { family: cssColor('--font'), size: 13, color: ink },
      paper_bgcolor: 'rgba(0,0,0,0)',
      plot_bgcolor: 'rgba(0,0,0,0)',
      margin: { l: 56, r: 12, t: 12, b: 48 },
      hovermode: 'closest',
      // On a touch screen a finger on a chart must still scroll the page.
      dragmode: coarse.matches ? false : 'zoom',
      showlegend: false, // ours stands above the chart, where it wraps as text does
      hoverlabel: {
        align: 'left',
        bgcolor: cssColor('--card'),
        bordercolor: cssColor('--muted'),
        font: { size: 12, color: ink, family: cssColor('--font') },
      },
      xaxis: { ...axis, ...xaxis },
      yaxis: { ...axis, ...yaxis },
      ...rest,
    },
    {
      responsive: true,
      displaylogo: false,
      displayModeBar: coarse.matches ? false : 'hover',
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'],
      toImageButtonOptions: { format: 'svg', filename: `rlprune-${id}` },
    },
  );
}

const emptyChart = (id, words) =>
  draw(id, [], {
    xaxis: { visible: false },
    yaxis: { visible: false },
    height: 120,
    annotations: [{ text: words, showarrow: false, x: 0.5, y: 0.5, xref: 'paper', yref: 'paper' }],
  });

const methodMarker = (method, size) => ({
  color: colorOf(method),
  symbol: raw.methods[method].symbol,
  size,
  line: {
    width: raw.methods[method].symbol.endsWith('-open') ? 2 : 1,
    color: raw.methods[method].symbol.endsWith('-open') ? colorOf(method) : cssColor('--card'),
  },
});
const countText = (low, high) => (low === high ? `n = ${low}` : `n = ${low}–${high}`);

// Against R_r, for one setting.
function drawTradeoff(indices) {
  const setting = Number(state.setting);
  const inSetting = indices.filter((i) => numbers.setting[i] === setting);
  const family = inSetting.length ? numbers.family[inSetting[0]] : -1;
  const dense = indices.filter((i) => isDense(i) && numbers.family[i] === family);
  const points = [...new Set([...inSetting, ...dense])];
  for (const [id, column, scale, title] of [
    ['tradeoff-accuracy', state.accuracy, 100, `${ACCURACIES[state.accuracy]} [%]`],
    ['tradeoff-storage', 'storage_bytes', 1e-3, 'storage [KB]'],
  ]) {
    if (!points.length) {
      emptyChart(id, 'Nothing is left by the filters.');
      continue;
    }
    const traces = tradeoffTraces(points, column, scale);
    if (column === 'storage_bytes') traces.push(...storageBudget(points));
    draw(id, traces, {
      height: 380,
      xaxis: { title: { text: 'tradeoff rate R<sub>r</sub>' }, range: [-0.05, 1.05], dtick: 0.25 },
      yaxis: {
        title: { text: title },
        rangemode: column === 'storage_bytes' ? 'tozero' : 'normal',
      },
    });
  }
  const present = Object.keys(raw.methods).filter((m) =>
    points.some((i) => textOf('method', i) === m),
  );
  const items = present.map((m) => [
    raw.methods[m].marker ? methodIcon(m) : lineIcon(colorOf(m), DASHES[raw.methods[m].line]),
    raw.methods[m].label,
  ]);
  if (storageBudget(points).length)
    items.push([lineIcon(cssColor('--bad'), 'dot'), 'storage budget']);
  legend('tradeoff-legend', items);
  const counts = [...groupBy(points, repetitionKey).values()].map((g) => g.length);
  setText(
    'tradeoff-note',
    points.length
      ? `Mean over repetitions that differ in nothing but the seed, bars: standard error (${countText(Math.min(...counts), Math.max(...counts))}). Follows the selected mark.`
      : '',
  );
}

function tradeoffTraces(points, column, scale) {
  const traces = [];
  for (const [method, style] of Object.entries(raw.methods)) {
    const rows = points.filter((i) => textOf('method', i) === method);
    if (!rows.length) continue;
    const groups = [...groupBy(rows, (i) => numbers.tradeoff_rate[i])].sort((a, b) => a[0] - b[0]);
    const reference = groups[0][0] === null;
    const stats = groups.map(([, members]) => statisticsOf(column, members));
    const y = stats.map((s) => s.mean * scale),
      error = stats.map((s) => (s.error || 0) * scale);
    const hover = groups.map(
      ([rate], at) =>
        `<b>${plain(style.label)}</b>${reference ? '' : `, R<sub>r</sub> = ${rate}`}<br>${plusMinus(stats[at], 2, scale)} (n = ${stats[at].n})`,
    );
    traces.push({
      name: style.label,
      type: 'scatter',
      mode: reference ? 'lines' : 'lines+markers',
      x: reference ? [0, 0.5, 1] : groups.map(([rate]) => rate),
      y: reference ? [y[0], y[0], y[0]] : y,
      text: reference ? [hover[0], hover[0], hover[0]] : hover,
      hoverinfo: 'text',
      error_y: {
        type: 'data',
        array: reference ? [0, error[0], 0] : error,
        visible: error.some((e) => e > 0),
        thickness: 1.3,
        width: 4,
      },
      line: { color: colorOf(method), dash: DASHES[style.line], width: style.width + 0.4 },
      marker: methodMarker(method, 9),
    });
  }
  return traces;
}

function storageBudget(points) {
  const budget = new Map();
  for (const i of points) {
    if (textOf('method', i) === 'learned' && numbers.storage_budget_bytes[i] !== null)
      budget.set(numbers.tradeoff_rate[i], numbers.storage_budget_bytes[i] / 1000);
  }
  if (!budget.size) return [];
  let steps = [...budget].sort((a, b) => a[0] - b[0]);
  if (steps.length === 1)
    steps = [
      [0, steps[0][1]],
      [1, steps[0][1]],
    ];
  return [
    {
      name: 'storage budget',
      type: 'scatter',
      mode: 'lines',
      x: steps.map((s) => s[0]),
      y: steps.map((s) => s[1]),
      line: { color: cssColor('--bad'), dash: 'dot', width: 2 },
      hoverinfo: 'y+name',
    },
  ];
}
