//! The results, as text for people and as JSON for programs.

use std::fmt::Write;

use coralio::driver::Stats;
use serde_json::{Value, json};

use crate::meter::Spent;
use crate::options::{Options, Versus};
use crate::target::Target;
use crate::work::{Latencies, Pattern, WARM_UP};

/// The result of one timed round of one side.
#[derive(Clone)]
pub struct Round {
    operations: u64,
    seconds: f64,
    iops: f64,
    /// CPU time per operation.
    cpu_ns: f64,
    user_ns: f64,
    system_ns: f64,
    /// The engine's counters over the round, by name.
    counts: Vec<(&'static str, u64)>,
    /// System calls per operation according to the counters, if known.
    system_calls: Option<f64>,
    latencies: Option<Latencies>,
}

/// The results of both sides in consecutive rounds.
pub struct Pair {
    pub ours: Round,
    pub peer: Round,
}

/// The results of a run. With several rounds, `median` combines the figures of each side.
pub struct Report {
    head: Head,
    versus: Option<Versus>,
    alone: Option<Round>,
    pairs: Vec<Pair>,
    /// The latencies of our side and of the opponent.
    latencies: [Option<Latencies>; 2],
}

struct Head {
    file: String,
    scratch: bool,
    size: u64,
    block_size: u64,
    depth: u32,
    threads: u32,
    direct: bool,
    backend: String,
    pattern: String,
    operation: &'static str,
    pin: Option<usize>,
    seed: u64,
}

impl Round {
    /// Creates the result of the coroutines from two readings of the engine's counters.
    pub fn ours(operations: u64, spent: Spent, before: &Stats, after: &Stats, latencies: Option<Latencies>) -> Round {
        let counts = vec![
            ("requests", after.requests - before.requests),
            ("completions", after.completions - before.completions),
            ("submits", after.submits - before.submits),
            ("sleeps", after.sleeps - before.sleeps),
            ("in place", after.in_place - before.in_place),
        ];
        let calls = counts[2..].iter().map(|(_, count)| count).sum();
        Round::new(operations, spent, counts, Some(calls), latencies)
    }

    /// Creates the result of an opponent; `calls` are the submitting and sleeping system calls.
    pub fn peer(operations: u64, spent: Spent, calls: Option<(u64, u64)>, latencies: Option<Latencies>) -> Round {
        let mut counts = vec![("requests", operations)];
        if let Some((submits, sleeps)) = calls {
            counts.extend([("submits", submits), ("sleeps", sleeps)]);
        }
        Round::new(operations, spent, counts, calls.map(|(submits, sleeps)| submits + sleeps), latencies)
    }

    fn new(
        operations: u64,
        spent: Spent,
        counts: Vec<(&'static str, u64)>,
        calls: Option<u64>,
        latencies: Option<Latencies>,
    ) -> Round {
        let each = |time: std::time::Duration| time.as_nanos() as f64 / operations as f64;
        // The clocks may not advance during a few operations; avoid division by zero.
        let seconds = spent.wall.as_secs_f64().max(1e-9);
        Round {
            operations,
            seconds,
            iops: operations as f64 / seconds,
            cpu_ns: each(spent.cpu).max(1e-3),
            user_ns: each(spent.user),
            system_ns: each(spent.system),
            system_calls: calls.map(|calls| calls as f64 / operations as f64),
            counts,
            latencies,
        }
    }

    /// Combines rounds that ran at the same time on several threads of this process. Each has
    /// measured the CPU time of all.
    pub fn simultaneous(rounds: Vec<Round>) -> Round {
        let operations = rounds.iter().map(|round| round.operations).sum::<u64>();
        let longest = |time: fn(&Round) -> f64| rounds.iter().map(time).fold(0.0, f64::max);
        let each = |time: fn(&Round) -> f64| longest(time) / operations as f64;
        let seconds = longest(|round| round.seconds);
        let total = |i: usize| rounds.iter().map(|round| round.counts[i].1).sum();
        let counts: Vec<_> = rounds[0].counts.iter().enumerate().map(|(i, &(name, _))| (name, total(i))).collect();
        let mut latencies = None::<Latencies>;
        rounds.iter().for_each(|round| add(&mut latencies, round.latencies.as_ref()));
        Round {
            operations,
            seconds,
            iops: operations as f64 / seconds,
            cpu_ns: each(|round| round.cpu_ns * round.operations as f64),
            user_ns: each(|round| round.user_ns * round.operations as f64),
            system_ns: each(|round| round.system_ns * round.operations as f64),
            system_calls: Some(counts[2..].iter().map(|&(_, count)| count).sum::<u64>() as f64 / operations as f64),
            counts,
            latencies,
        }
    }

    fn json(&self) -> Value {
        let counts: serde_json::Map<_, _> =
            self.counts.iter().map(|&(name, count)| (name.to_string(), json!(count))).collect();
        json!({
            "operations": self.operations,
            "seconds": self.seconds,
            "iops": self.iops,
            "cpu_ns_per_op": self.cpu_ns,
            "user_ns_per_op": self.user_ns,
            "system_ns_per_op": self.system_ns,
            "system_calls_per_op": self.system_calls,
            "counts": counts,
        })
    }

    pub fn operations(&self) -> u64 {
        self.operations
    }

    fn counts(&self) -> String {
        let each: Vec<_> = self.counts.iter().map(|(name, count)| format!("{} {name}", grouped(*count))).collect();
        let calls = self.system_calls.map(|calls| format!("{calls:.4} system calls per operation; "));
        calls.unwrap_or_default() + &each.join(", ")
    }
}

impl Report {
    pub fn new(options: &Options, target: &Target) -> Report {
        Report {
            head: Head {
                file: target.name.clone(),
                scratch: target.scratch,
                size: target.size,
                block_size: options.block_size,
                depth: options.depth,
                threads: options.threads,
                direct: target.file.is_direct(),
                backend: options.backend.to_string(),
                pattern: match options.pattern() {
                    Pattern::Random { .. } => "random".to_string(),
                    Pattern::Steps { blocks: 1 } => "sequential".to_string(),
                    Pattern::Steps { blocks } => format!("every {blocks}th"),
                },
                operation: options.verb(),
                pin: options.pin,
                seed: options.seed,
            },
            versus: options.versus,
            alone: None,
            pairs: Vec::new(),
            latencies: [None, None],
        }
    }

    /// Records the only round of a run without an opponent.
    pub fn alone(&mut self, mut round: Round) {
        self.latencies[0] = round.latencies.take();
        self.alone = Some(round);
    }

    /// Records one round of each side.
    pub fn pair(&mut self, pair: Pair) {
        self.pairs.push(pair);
    }

    /// Records the latencies of one round of each side, whose other figures are not used.
    pub fn latencies(&mut self, ours: &Round, peer: Option<&Round>) {
        add(&mut self.latencies[0], ours.latencies.as_ref());
        add(&mut self.latencies[1], peer.and_then(|peer| peer.latencies.as_ref()));
    }

    pub fn json(&self) -> String {
        let head = &self.head;
        let mut all = json!({
            "file": head.file,
            "scratch": head.scratch,
            "size": head.size,
            "block_size": head.block_size,
            "depth": head.depth,
            "threads": head.threads,
            "direct": head.direct,
            "backend": head.backend,
            "pattern": head.pattern,
            "operation": head.operation,
            "pinned_cpu": head.pin,
            "seed": head.seed,
            "warm_up_operations": WARM_UP,
        });
        if let Some(round) = &self.alone {
            all["ours"] = round.json();
        }
        if let Some(versus) = self.versus {
            let (ours, peer) = self.medians();
            all["versus"] = json!(versus.name());
            all["ours"] = ours.json();
            all[versus.name()] = peer.json();
            all["ratio_cpu"] = json!(ours.cpu_ns / peer.cpu_ns);
            all["ratio_iops"] = json!(ours.iops / peer.iops);
            let each = |pair: &Pair| json!({"ours": pair.ours.json(), versus.name(): pair.peer.json()});
            all["rounds"] = self.pairs.iter().map(each).collect();
        }
        let quantiles = |latencies: &Latencies| {
            json!({
                "p50": latencies.value_at_quantile(0.5),
                "p99": latencies.value_at_quantile(0.99),
                "p99_9": latencies.value_at_quantile(0.999),
                "max": latencies.max(),
            })
        };
        let [ours, peer] = &self.latencies;
        if let Some(latencies) = ours {
            all["latency_ns"] = quantiles(latencies);
        }
        if let (Some(versus), Some(latencies)) = (self.versus, peer) {
            all[versus.name()]["latency_ns"] = quantiles(latencies);
        }
        format!("{all:#}\n")
    }

    pub fn text(&self) -> String {
        let mut text = self.head.text();
        if let Some(round) = &self.alone {
            alone(&mut text, round, self.head.block_size);
        }
        if let Some(versus) = self.versus {
            self.versus(&mut text, versus.label());
        }
        let names = match self.versus {
            None => ["latency", ""],
            Some(versus) => {
                if self.latencies[0].is_some() {
                    line(&mut text, format_args!("  latencies, from separate rounds:"));
                }
                ["coroutines", versus.label()]
            }
        };
        for (name, latencies) in names.into_iter().zip(&self.latencies) {
            let Some(latencies) = latencies else { continue };
            let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
            let (p50, p99, p99_9) = (at(0.5), at(0.99), at(0.999));
            line(&mut text, format_args!("  {name:>15}: p50 {p50:.1} us   p99 {p99:.1} us   p99.9 {p99_9:.1} us"));
        }
        text
    }

    fn versus(&self, text: &mut String, peer_name: &str) {
        line(text, format_args!("{:>8} {:>34}   {:>34}", "", "coroutines", peer_name));
        let columns = "IOPS   CPU ns   user/system";
        line(text, format_args!("{:>8} {columns:>34}   {columns:>34}", "round"));
        let row = |text: &mut String, name: &str, ours: &Round, peer: &Round| {
            let half = |r: &Round| {
                let (user, system) = (r.user_ns, r.system_ns);
                format!("{:>11.0} {:>8.0} {user:>6.0}/{system:<6.0}", r.iops, r.cpu_ns)
            };
            line(text, format_args!("{name:>8} {:>34}   {:>34}", half(ours), half(peer)));
        };
        for (i, pair) in self.pairs.iter().enumerate() {
            row(text, &(i + 1).to_string(), &pair.ours, &pair.peer);
        }
        let (ours, peer) = self.medians();
        row(text, "median", &ours, &peer);
        line(
            text,
            format_args!(
                "   ratio  CPU {:.3}   IOPS {:.3}   (coroutines / {peer_name})",
                ours.cpu_ns / peer.cpu_ns,
                ours.iops / peer.iops
            ),
        );
        for (name, side) in [("coroutines", &ours), (peer_name, &peer)] {
            line(text, format_args!("  {name:>15}: {}", side.counts()));
        }
    }

    fn medians(&self) -> (Round, Round) {
        let side = |pick: fn(&Pair) -> &Round| median(&self.pairs.iter().map(pick).collect::<Vec<_>>());
        (side(|pair| &pair.ours), side(|pair| &pair.peer))
    }
}

impl Head {
    fn text(&self) -> String {
        let Head { pattern, operation, depth, backend, file, .. } = self;
        let way = if self.direct { "direct" } else { "page-cached" };
        let cpu = self.pin.map_or(String::new(), |cpu| format!(", on CPU {cpu}"));
        let (block, size) = (scaled(self.block_size), scaled(self.size));
        let threads = if self.threads == 1 { String::new() } else { format!(" on each of {} threads", self.threads) };
        format!(
            "{pattern} {operation}s of {block}, depth {depth}{threads}, backend {backend}, {way}{cpu}: {size} of {file}\n"
        )
    }
}

fn alone(text: &mut String, round: &Round, block_size: u64) {
    let Round { iops, cpu_ns, user_ns, system_ns, seconds, .. } = round;
    let rate = iops * block_size as f64 / (1 << 20) as f64;
    let operations = grouped(round.operations);
    let warm_up = grouped(WARM_UP);
    line(text, format_args!("  {operations} operations in {seconds:.2} s, after {warm_up} to warm up"));
    line(text, format_args!("  {iops:.0} IOPS, {rate:.0} MiB/s"));
    line(text, format_args!("  CPU      {cpu_ns:.0} ns per operation: user {user_ns:.0}, system {system_ns:.0}"));
    line(text, format_args!("  {}", round.counts()));
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{what}");
}

/// Adds latencies to those of other rounds.
fn add(all: &mut Option<Latencies>, more: Option<&Latencies>) {
    match (all, more) {
        (_, None) => {}
        (Some(all), Some(more)) => all.add(more).expect("the same bounds"),
        (all @ None, Some(more)) => *all = Some(more.clone()),
    }
}

/// Computes the median of each figure separately; operations, seconds and counters are totals of
/// all rounds.
fn median(rounds: &[&Round]) -> Round {
    let middle = |figure: fn(&Round) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(|round| figure(round)).collect();
        all.sort_by(f64::total_cmp);
        (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0
    };
    let operations = rounds.iter().map(|round| round.operations).sum();
    let total = |i: usize| rounds.iter().map(|round| round.counts[i].1).sum();
    let calls: Option<f64> = rounds.iter().map(|round| Some(round.system_calls? * round.operations as f64)).sum();
    Round {
        operations,
        seconds: rounds.iter().map(|round| round.seconds).sum(),
        iops: middle(|round| round.iops),
        cpu_ns: middle(|round| round.cpu_ns),
        user_ns: middle(|round| round.user_ns),
        system_ns: middle(|round| round.system_ns),
        counts: rounds[0].counts.iter().enumerate().map(|(i, &(name, _))| (name, total(i))).collect(),
        system_calls: calls.map(|calls| calls / operations as f64),
        latencies: None,
    }
}

/// Formats 4096 as "4 KiB"; other values in bytes.
fn scaled(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// Formats 1234567 as "1,234,567".
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
