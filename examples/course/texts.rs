//! The texts of a lesson, from its source: the head, and the comments above each act.

/// The parts of a lesson's head.
pub(crate) struct Head {
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) puzzle: String,
    pub(crate) hint: String,
}

/// Returns the head, with one line per paragraph or item of a list.
pub(crate) fn head(source: &str) -> Head {
    let lines =
        source.lines().map_while(|line| line.strip_prefix("//!")).map(|line| line.strip_prefix(' ').unwrap_or(line));
    let mut paragraphs = paragraphs(lines).into_iter();
    let title = paragraphs.next().unwrap_or_default().trim_end_matches('.').to_string();
    let (mut text, mut puzzle, mut hint) = (Vec::new(), String::new(), String::new());
    for paragraph in paragraphs {
        match (paragraph.strip_prefix("Puzzle: "), paragraph.strip_prefix("Hint: ")) {
            (Some(words), _) => puzzle = words.into(),
            (_, Some(words)) => hint = words.into(),
            _ => text.push(paragraph),
        }
    }
    Head { title, text: text.join("\n"), puzzle, hint }
}

/// Returns the comments above an act: those in `main` between the act before, which is named
/// `before`, and this one. `None` if the source does not contain the title.
pub(crate) fn above(source: &str, before: Option<&str>, title: &str) -> Option<String> {
    let main = &source[source.find("fn main() {")?..];
    let place = |title: &str| main.find(&format!("\"{title}\""));
    let begin = before.map_or(Some(0), place)?;
    let end = place(title)?;
    let lines = main
        .get(begin..end)?
        .lines()
        .map(|line| line.strip_prefix("    //").unwrap_or_default().trim_start_matches(' '));
    Some(paragraphs(lines).join("\n"))
}

/// Joins the lines of each paragraph. An item of a list is a paragraph.
pub(crate) fn paragraphs<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for line in lines {
        let last = paragraphs.last_mut().expect("there is one");
        if line.is_empty() || line.starts_with("- ") {
            paragraphs.push(line.into());
        } else if last.is_empty() {
            last.push_str(line);
        } else {
            last.push(' ');
            last.push_str(line.trim_start());
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs
}
