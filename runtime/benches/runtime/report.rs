//! The figures, for people and for programs.

use crate::measure::Figures;
use crate::options::Options;

pub(crate) fn print(options: &Options, all: &[Figures<'_>]) {
    if options.json { print_json(options, all) } else { print_table(options, all) }
}

fn ratio(figures: &Figures<'_>) -> Option<f64> {
    figures.bare.map(|bare| figures.ours / bare)
}

fn print_table(options: &Options, all: &[Figures<'_>]) {
    if options.trial {
        println!("A short trial, not a measurement; `cargo bench` measures.");
    }
    println!("{:18} {:>9} {:>9} {:>7}   at most", "ns of CPU time", "coralio", "bare", "ratio");
    let cell = |value: Option<f64>, digits| value.map_or("-".to_string(), |value| format!("{value:.digits$}"));
    for figures in all {
        let case = figures.case;
        let limits = match (case.at_most_ns, case.at_most_ratio) {
            (Some(ns), Some(ratio)) => format!("{ns} ns, {ratio} times bare"),
            (Some(ns), None) => format!("{ns} ns"),
            (None, Some(ratio)) => format!("{ratio} times bare"),
            (None, None) => String::new(),
        };
        let above = |value: Option<f64>, limit: Option<f64>| value.zip(limit).is_some_and(|(v, l)| v > l);
        let missed = above(Some(figures.ours), case.at_most_ns) || above(ratio(figures), case.at_most_ratio);
        println!(
            "{:18} {:>9} {:>9} {:>7}   {limits}{}",
            case.name,
            cell(Some(figures.ours), 1),
            cell(figures.bare, 1),
            cell(ratio(figures), 2),
            if missed && !options.trial { "  MISSED" } else { "" }
        );
    }
}

fn print_json(options: &Options, all: &[Figures<'_>]) {
    let value = |value: Option<f64>| value.map_or("null".to_string(), |value| format!("{value:.3}"));
    let lines: Vec<_> = all
        .iter()
        .map(|figures| {
            format!(
                r#"    {{"name": "{}", "ns": {}, "bare_ns": {}, "ratio": {}, "at_most_ns": {}, "at_most_ratio": {}}}"#,
                figures.case.name,
                value(Some(figures.ours)),
                value(figures.bare),
                value(ratio(figures)),
                value(figures.case.at_most_ns),
                value(figures.case.at_most_ratio)
            )
        })
        .collect();
    println!("{{");
    println!(r#"  "trial": {}, "rounds": {},"#, options.trial, options.rounds);
    println!("  \"cases\": [\n{}\n  ]", lines.join(",\n"));
    println!("}}");
}
