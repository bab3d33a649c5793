// The scatter plot: accuracy against cost, the front, the selected mark.

let shownMarks = [],
  shownFront = new Set();

function drawFront(indices) {
  shownMarks = makeMarks(indices);
  if (!shownMarks.length) {
    shownFront = new Set();
    emptyChart('front', 'Nothing is left by the filters.');
    setText('front-note', '');
    legend('front-legend', []);
    return;
  }
  const cost = COSTS[state.cost];
  const front = paretoFront(
    shownMarks,
    (m) => m.x.mean,
    (m) => m.chosen,
  );
  shownFront = new Set(front);
  const missedMarks = shownMarks.filter((m) => m.missed && m.x.mean !== null);
  const xs = shownMarks.map((m) => m.x.mean).filter((x) => x > 0);
  const log = Math.max(...xs) / Math.min(...xs) > 30;
  const traces = [
    // A staircase where it is one: what another accuracy has chosen may also go down.
    {
      name: 'front',
      type: 'scatter',
      mode: 'lines',
      ...place(front),
      line: {
        color: cssColor('--ink'),
        width: 1.6,
        shape: state.chosen === state.accuracy ? 'hv' : 'linear',
      },
      opacity: 0.7,
      hoverinfo: 'skip',
    },
    ...methodTracesOf(shownMarks),
    {
      ...place(missedMarks),
      type: 'scatter',
      mode: 'markers',
      name: 'budget not met',
      hoverinfo: 'skip',
      marker: {
        symbol: 'x-thin',
        size: 13,
        color: cssColor('--bad'),
        line: { width: 2.2, color: cssColor('--bad') },
      },
    },
  ];
  draw('front', traces, {
    height: narrow.matches ? 400 : 470,
    xaxis: { title: { text: cost.axis }, type: log ? 'log' : 'linear' },
    yaxis: { title: { text: `${ACCURACIES[state.accuracy]} [%]` } },
    annotations: backboneLabels(front, log),
    shapes: selectionRing(),
  });
  const present = Object.keys(raw.methods).filter((name) =>
    shownMarks.some((m) => m.method === name && m.x.mean !== null),
  );
  legend('front-legend', [
    ...present.map((name) => [methodIcon(name), raw.methods[name].label]),
    [
      lineIcon(cssColor('--ink')),
      `front, chosen on ${state.chosen === 'test_accuracy' ? 'test' : 'validation'}`,
    ],
    ...(missedMarks.length
      ? [[svgIcon(14, SHAPES.cross, { stroke: cssColor('--bad') }), 'budget NOT met']]
      : []),
  ]);
  frontNote(front);
}

const place = (marks) => ({
  x: marks.map((m) => (m.x.mean === null ? null : m.x.mean * COSTS[state.cost].scale)),
  y: marks.map((m) => (m.y.mean === null ? null : 100 * m.y.mean)),
});

// Learned last: on top.
function methodTracesOf(marks) {
  const at = new Map(marks.map((mark, number) => [mark, number]));
  return Object.keys(raw.methods)
    .reverse()
    .map((method) => {
      const own = marks.filter((m) => m.method === method);
      const bars = (name, scale) => ({
        type: 'data',
        array: own.map((m) => (m[name].error || 0) * scale),
        visible: own.some((m) => m[name].error > 0),
        thickness: 1.2,
        width: 3,
        color: colorOf(method),
      });
      return {
        ...place(own),
        name: raw.methods[method].label,
        type: 'scatter',
        mode: 'markers',
        meta: { method },
        customdata: own.map((m) => at.get(m)),
        text: own.map(hoverText),
        hoverinfo: 'text',
        marker: {
          ...methodMarker(method, own.length > 1500 ? 6 : 10),
          opacity: own.length > 300 ? 0.7 : 1,
        },
        error_x: bars('x', COSTS[state.cost].scale),
        error_y: bars('y', 100),
      };
    });
}

function hoverText(mark) {
  const i = mark.members[0],
    several = mark.members.length > 1;
  const rate = numbers.tradeoff_rate[i];
  const column = (name, scale, digits) =>
    plusMinus(statisticsOf(name, mark.members), digits, scale);
  return [
    `<b>${plain(raw.methods[mark.method].label)}</b>, ${plain(shorten(textOf('backbone', i), 40))}${rate === null ? '' : `, R<sub>r</sub> = ${rate}`}`,
    several
      ? `mean of ${mark.members.length} repetitions (± standard error)`
      : plain(shorten(textOf('trial', i), 60)),
    `test ${column('test_accuracy', 100, 2)} %, validation ${column('validation_accuracy', 100, 2)} %`,
    `storage ${column('storage_bytes', 1e-3, 1)} KB`,
    `MACs mean ${macs(statisticsOf('macs_mean', mark.members).mean)}, max ${macs(statisticsOf('macs_max', mark.members).mean)}`,
    ...(mark.members.some(isTimed) ? [`latency ${column('latency_seconds', 1e3, 3)} ms`] : []),
    isDense(i) ? 'no budget' : mark.missed ? '<b>budget NOT met</b>' : 'budget met',
  ].join('<br>');
}

// With several backbones, the front says where which one leads.
function backboneLabels(front, log) {
  const names = front.map((m) => textOf('backbone', m.members[0]));
  if (new Set(names).size < 2) return [];
  const { x, y } = place(front);
  return front.flatMap((mark, at) =>
    at && names[at] === names[at - 1]
      ? []
      : [
          {
            x: log ? Math.log10(x[at]) : x[at],
            y: y[at],
            text: plain(shorten(names[at], 24)),
            showarrow: false,
            xanchor: 'center',
            yanchor: 'bottom',
            yshift: 11,
            bgcolor: cssColor('--card'),
            borderpad: 1,
            opacity: 0.9,
            font: { size: 11, color: cssColor('--muted') },
          },
        ],
  );
}

function frontNote(front) {
  const repeated = Math.max(...shownMarks.map((m) => m.members.length));
  const parts = [`${plural(shownMarks.length, 'mark')}, ${front.length} on the front.`];
  if (repeated > 1)
    parts.push(`Marks are means over up to ${repeated} repetitions; bars: standard error.`);
  if (state.chosen === 'test_accuracy')
    parts.push(
      'A front chosen on the test images flatters its members: report what validation chooses.',
    );
  else if (state.accuracy === 'test_accuracy')
    parts.push(
      'Validation decides who is on the front, the test images say how good it is; so the line may dip.',
    );
  if (state.cost === 'latency_seconds') parts.push(...timingNotes());
  setText('front-note', parts.join(' '));
}

// What latency is of, and what is missing or should not be compared.
function timingNotes() {
  const shown = shownMarks.flatMap((m) => m.members).filter(isTimed);
  const settings = [...new Set(shown.map(timedWith))].sort();
  const without = shownMarks.filter((m) => m.x.mean === null).length;
  return [
    settings.length > 1
      ? `Careful: timed in ${settings.length} ways (${settings.join('; ')}).`
      : settings.map((setting) => `Timed with ${setting}.`).join(''),
    without
      ? `${plural(without, 'mark')} without a latency: rlprune bench RUN --all times learned networks and their dense ones.`
      : '',
  ].filter(Boolean);
}

// A shape, not a trace: moving it does not draw thousands of marks again.
function selectionRing() {
  return shownMarks
    .filter((m) => m.members.includes(state.selected) && m.x.mean !== null)
    .map((mark) => {
      const { x, y } = place([mark]);
      return {
        type: 'circle',
        layer: 'below',
        xref: 'x',
        yref: 'y',
        xsizemode: 'pixel',
        ysizemode: 'pixel',
        xanchor: x[0],
        yanchor: y[0],
        x0: -12,
        x1: 12,
        y0: -12,
        y1: 12,
        fillcolor: cssColor('--glow'),
        line: { width: 2.5, color: cssColor('--ink') },
      };
    });
}
const moveRing = () => Plotly.relayout('front', { shapes: selectionRing() });

function listenToFront() {
  byId('front').on('plotly_click', (event) => {
    const point = event.points.find((p) => p.customdata !== undefined);
    if (point) select(bestMember(shownMarks[point.customdata].members));
  });
}
