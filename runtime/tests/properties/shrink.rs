//! Shrinks a failing program to a small one that still fails, by removing steps while that is
//! possible.

use crate::program::{Program, Step};

/// Removes as much as it can from `program` while `fails` holds.
pub(crate) fn shrink(program: Program, mut fails: impl FnMut(&Program) -> bool) -> Program {
    let mut smallest = program;
    loop {
        let before = smallest.clone();
        for list in 0..smallest.lists().count() {
            shorten(&mut smallest, list, &mut fails);
            simplify(&mut smallest, list, &mut fails);
        }
        if smallest == before {
            return smallest;
        }
    }
}

/// Removes steps from one list: first all of them, in the end one by one.
fn shorten(program: &mut Program, list: usize, fails: &mut impl FnMut(&Program) -> bool) {
    let mut chunk = steps(program, list).len();
    while chunk > 0 {
        let mut at = 0;
        while at < steps(program, list).len() {
            let left_out = |steps: &mut Vec<Step>| drop(steps.drain(at..(at + chunk).min(steps.len())));
            if !attempt(program, list, left_out, fails) {
                at += chunk;
            }
        }
        chunk /= 2;
    }
}

/// Replaces steps by simpler ones.
fn simplify(program: &mut Program, list: usize, fails: &mut impl FnMut(&Program) -> bool) {
    for at in 0..steps(program, list).len() {
        let plainer: Vec<Step> = match &steps(program, list)[at] {
            Step::Shield(inner) | Step::Timeout(inner) | Step::Defer(inner) => vec![(**inner).clone()],
            Step::EnterThrough(co) | Step::EnterUnlessEntered(co) => vec![Step::Enter(*co)],
            Step::PollKicked => vec![Step::Poll],
            Step::Scope(children, panics) => (0..children.len())
                .map(|left_out| {
                    let mut fewer = children.clone();
                    fewer.remove(left_out);
                    Step::Scope(fewer, *panics)
                })
                .chain(panics.then(|| Step::Scope(children.clone(), false)))
                .collect(),
            _ => continue,
        };
        for step in plainer {
            if attempt(program, list, |steps| steps[at] = step.clone(), fails) {
                break;
            }
        }
    }
}

fn steps(program: &Program, list: usize) -> &Vec<Step> {
    program.lists().nth(list).expect("the number of lists stays the same")
}

/// Keeps the change if the changed program still fails.
fn attempt(
    program: &mut Program,
    list: usize,
    change: impl FnOnce(&mut Vec<Step>),
    fails: &mut impl FnMut(&Program) -> bool,
) -> bool {
    let mut smaller = program.clone();
    change(smaller.lists_mut().nth(list).expect("the number of lists stays the same"));
    let kept = fails(&smaller);
    if kept {
        *program = smaller;
    }
    kept
}
