//! Prints the figures, as a table or as JSON.

use crate::cases::Peer;
use crate::measure::Figures;
use crate::options::Options;

pub(crate) fn print(options: &Options, all: &[Figures<'_>]) {
    if options.json { print_json(options, all) } else { print_table(options, all) }
}

/// Returns whether the limit is met. A trial cannot decide that.
fn met(options: &Options, value: f64, at_most: Option<f64>) -> Option<bool> {
    at_most.filter(|_| !options.trial).map(|limit| value <= limit)
}

fn peers<'a>(figures: &'a Figures<'_>) -> impl Iterator<Item = (&'static Peer, f64, f64)> + 'a {
    figures.case.peers.iter().zip(&figures.peers).map(|(peer, &value)| (peer, value, figures.ours / value))
}

fn print_table(options: &Options, all: &[Figures<'_>]) {
    if options.trial {
        println!("A short trial, not a measurement; `cargo bench` measures.");
    }
    println!(
        "{:21} {:>8} {:6} {:>8} {:6}   {:12} {:>8} {:>6} {:>8}",
        "", "coralio", "", "at most", "", "peer", "", "ratio", "at most"
    );
    let limit = |limit: Option<f64>| limit.map_or(String::new(), |limit| limit.to_string());
    let verdict = |value, limit| match met(options, value, limit) {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    };
    for figures in all {
        let case = figures.case;
        let ours = format!(
            "{:21} {:>8} {:6} {:>8} {:6}",
            case.name,
            round(figures.ours),
            case.unit.name(),
            limit(case.at_most),
            verdict(figures.ours, case.at_most)
        );
        let mut beside = peers(figures).map(|(peer, value, ratio)| {
            let verdict = verdict(ratio, peer.at_most);
            format!("{:12} {:>8} {ratio:>6.2} {:>8} {verdict}", peer.name, round(value), limit(peer.at_most))
        });
        println!("{}", format!("{ours}   {}", beside.next().unwrap_or_default()).trim_end());
        let indent = ours.len();
        beside.for_each(|line| println!("{}", format!("{:indent$}   {line}", "").trim_end()));
    }
}

/// Formats with at least three digits.
fn round(value: f64) -> String {
    if value < 1000.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn print_json(options: &Options, all: &[Figures<'_>]) {
    let number = |value: Option<f64>| match value {
        Some(value) if value.is_finite() => format!("{value:.3}"),
        _ => "null".to_string(),
    };
    let met = |value, limit| met(options, value, limit).map_or("null".to_string(), |met| met.to_string());
    let case = |figures: &Figures<'_>| {
        let peers: Vec<_> = peers(figures)
            .map(|(peer, value, ratio)| {
                format!(
                    r#"{{"name": "{}", "value": {}, "ratio": {}, "at_most_ratio": {}, "met": {}}}"#,
                    peer.name,
                    number(Some(value)),
                    number(Some(ratio)),
                    number(peer.at_most),
                    met(ratio, peer.at_most)
                )
            })
            .collect();
        format!(
            r#"    {{"name": "{}", "unit": "{}", "value": {}, "at_most": {}, "met": {}, "peers": [{}]}}"#,
            figures.case.name,
            figures.case.unit.name(),
            number(Some(figures.ours)),
            number(figures.case.at_most),
            met(figures.ours, figures.case.at_most),
            peers.join(", ")
        )
    };
    println!("{{");
    println!(r#"  "trial": {}, "rounds": {},"#, options.trial, options.rounds);
    println!("  \"cases\": [\n{}\n  ]", all.iter().map(case).collect::<Vec<_>>().join(",\n"));
    println!("}}");
}
