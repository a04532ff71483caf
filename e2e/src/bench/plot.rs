//! Figures against the number of Services, as an SVG: both axes logarithmic, a line for each side.

use std::fmt::Write as _;

use super::{Run, Side, Subject, Summary};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 15.0;
const TOP: f64 = 35.0;
const BOTTOM: f64 = 45.0;

/// One line of a panel.
struct Series {
    name: &'static str,
    /// As CSS has it.
    color: &'static str,
    dashed: bool,
    /// Services, and the figure.
    points: Vec<(f64, f64)>,
}

/// The latency of a change and of a first packet, side by side. Empty without runs.
#[must_use]
pub fn render(runs: &[Run]) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let changes = [
        series(runs, Subject::Ours, "pointsman p50", false, |side| {
            change(side).p50
        }),
        series(runs, Subject::Ours, "pointsman p99", true, |side| {
            change(side).p99
        }),
        series(runs, Subject::Peer, "kube-proxy p50", false, |side| {
            change(side).p50
        }),
    ];
    let packets = [
        series(runs, Subject::Ours, "pointsman p50", false, |side| {
            side.first_packet_us.p50
        }),
        series(runs, Subject::Ours, "pointsman p99", true, |side| {
            side.first_packet_us.p99
        }),
        series(runs, Subject::Peer, "kube-proxy p50", false, |side| {
            side.first_packet_us.p50
        }),
        series(runs, Subject::Peer, "kube-proxy p99", true, |side| {
            side.first_packet_us.p99
        }),
    ];
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{HEIGHT}\" viewBox=\"0 0 {0} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
        WIDTH * 2.0
    );
    panel(&mut svg, 0.0, "API change to kernel, ms", &changes);
    panel(&mut svg, WIDTH, "connect() through a ClusterIP, us", &packets);
    svg.push_str("</svg>\n");
    svg
}

/// By commits where the kernel tells of them, by packets elsewhere.
fn change(side: &Side) -> Summary {
    side.change_commit_ms.unwrap_or(side.change_ms)
}

fn series(
    runs: &[Run],
    subject: Subject,
    name: &'static str,
    dashed: bool,
    figure: impl Fn(&Side) -> f64,
) -> Series {
    let (color, side): (_, fn(&Run) -> &Side) = match subject {
        Subject::Ours => ("#0b6e4f", |run| &run.ours),
        Subject::Peer => ("#c1440e", |run| &run.peer),
    };
    let mut points: Vec<_> = runs
        .iter()
        .map(|run| (run.services as f64, figure(side(run))))
        // A logarithm has no place for what took no time.
        .filter(|(_, value)| *value > 0.0)
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    Series {
        name,
        color,
        dashed,
        points,
    }
}

fn panel(svg: &mut String, offset: f64, title: &str, all: &[Series]) {
    let points = || all.iter().flat_map(|series| &series.points);
    let (Some(across), Some(up)) = (
        decades(points().map(|point| point.0)),
        decades(points().map(|point| point.1)),
    ) else {
        return;
    };
    let x = |value: f64| {
        offset + LEFT + (value.log10() - across.0) / (across.1 - across.0) * (WIDTH - LEFT - RIGHT)
    };
    let y = |value: f64| HEIGHT - BOTTOM - (value.log10() - up.0) / (up.1 - up.0) * (HEIGHT - TOP - BOTTOM);
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"18\" font-size=\"13\">{title}</text>",
        offset + LEFT
    );
    for value in ticks(up) {
        let at = y(value);
        let _ = writeln!(
            svg,
            "<path d=\"M{} {at:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            offset + LEFT,
            offset + WIDTH - RIGHT,
            offset + LEFT - 5.0,
            at + 4.0
        );
    }
    for value in ticks(across) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
            x(value),
            HEIGHT - BOTTOM + 16.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">Services (10 endpoints each)</text>",
        offset + (WIDTH + LEFT) / 2.0,
        HEIGHT - 12.0
    );
    for (number, series) in all.iter().enumerate() {
        let Series { name, color, .. } = series;
        let dash = if series.dashed {
            " stroke-dasharray=\"4 3\""
        } else {
            ""
        };
        let mut path = String::new();
        for (place, &(services, value)) in series.points.iter().enumerate() {
            let verb = if place == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{:.1} {:.1}", x(services), y(value));
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{color}\"/>",
                x(services),
                y(value)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{dash}/>"
        );
        let (left, line) = (offset + LEFT + 8.0, TOP + 10.0 + 14.0 * number as f64);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {line}h20\" stroke=\"{color}\" stroke-width=\"2\"{dash}/><text x=\"{}\" y=\"{}\">{name}</text>",
            left + 25.0,
            line + 4.0
        );
    }
}

/// The decades around all values, as exponents; at least one.
fn decades(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let logarithms = values.map(f64::log10).map(|value| (value, value));
    let (low, high) = logarithms.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
    let (low, high) = (low.floor(), high.ceil());
    Some((low, high.max(low + 1.0)))
}

fn ticks((low, high): (f64, f64)) -> impl Iterator<Item = f64> {
    (low as i32..=high as i32).map(|exponent| 10f64.powi(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_has_figures_is_drawn() {
        let small = super::super::report::tests::a_run();
        let mut large = small.clone();
        large.services = 10_000;
        let svg = render(&[large, small]);
        // Two lines of ours and one of kube-proxy have figures; first packets have none, and no panel.
        assert_eq!(svg.matches("<circle").count(), 6, "{svg}");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn an_axis_has_whole_decades() {
        assert_eq!(decades([3.0, 250.0].into_iter()), Some((0.0, 3.0)));
        assert_eq!(decades([10.0].into_iter()), Some((1.0, 2.0)));
        assert_eq!(decades([].into_iter()), None);
        assert_eq!(ticks((0.0, 2.0)).collect::<Vec<_>>(), [1.0, 10.0, 100.0]);
    }
}
