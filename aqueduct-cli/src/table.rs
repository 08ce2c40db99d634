//! Tables and short words for people: narrow where the terminal is.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use anstyle::Style;
use aqueduct::Timestamp;

/// No column becomes narrower than this, but for those that are.
const COLUMN_MIN: usize = 6;

/// Rows of cells below a head. Where they are too wide the widest columns are cut, but never the first.
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    beneath: bool,
}

impl Table {
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new(), beneath: false }
    }

    /// Where it is too wide, the last cell of each row stands on a line of its own.
    pub(crate) fn last_beneath(mut self) -> Self {
        self.beneath = true;
        self
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.iter().map(|cell| one_line(cell)).collect());
    }

    /// The table in the width of the terminal.
    pub(crate) fn text(&self, with_head: bool) -> String {
        self.fit(width(), with_head)
    }

    fn fit(&self, most: Option<usize>, with_head: bool) -> String {
        let columns = self.head.len();
        let too_wide = self.beneath && most.is_some_and(|most| total(&self.widths(columns)) > most);
        let columns = if too_wide { columns - 1 } else { columns };
        let mut widths = self.widths(columns);
        while most.is_some_and(|most| total(&widths) > most) {
            let widest = (1..columns).max_by_key(|n| widths[*n]).filter(|n| widths[*n] > COLUMN_MIN);
            let Some(widest) = widest else { break };
            widths[widest] -= 1;
        }
        let bold = Style::new().bold();
        let mut text = String::new();
        if with_head {
            let _ = writeln!(text, "{bold}{}{bold:#}", line(self.head.iter().copied(), &widths));
        }
        for row in &self.rows {
            let _ = writeln!(text, "{}", line(row.iter().map(String::as_str), &widths));
            let beneath = row.get(columns).filter(|cell| !cell.is_empty());
            if let (Some(cell), Some(most)) = (beneath, most) {
                let _ = writeln!(text, "  {}", console::truncate_str(cell, most.saturating_sub(2), "…"));
            }
        }
        text
    }

    fn widths(&self, columns: usize) -> Vec<usize> {
        let of_column = |n: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(n)).map(String::as_str);
            cells.chain([self.head[n]]).map(console::measure_text_width).max().unwrap_or(0)
        };
        (0..columns).map(of_column).collect()
    }
}

/// The columns with two spaces between them.
fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
}

fn line<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let cells = cells.zip(widths).map(|(cell, width)| {
        let cut = console::truncate_str(cell, *width, "…");
        console::pad_str(&cut, *width, console::Alignment::Left, None).into_owned()
    });
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

/// How wide the output is; none where it may be of any width. The variable `COLUMNS` counts everywhere.
fn width() -> Option<usize> {
    let named = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|width| *width > 0);
    named.or_else(|| {
        let of_terminal = || console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
        std::io::stdout().is_terminal().then(of_terminal).flatten()
    })
}

/// Text of others, which must not speak to the terminal or begin a line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same, but lines stay lines.
pub(crate) fn lines(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// How long ago, in the largest unit.
pub(crate) fn age(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(|| "-".to_owned(), |at| span(now.since(at)))
}

pub(crate) fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let seconds = span.as_secs();
    let unit = UNITS.iter().find(|(unit, _)| seconds >= *unit);
    unit.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

/// So many of something.
pub(crate) fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", indicatif::HumanCount(number))
}

/// JSON with each value on a line of its own. What it says stays as it was written, numbers and the order of keys too.
pub(crate) fn pretty(json: &str) -> String {
    let (mut text, mut depth, mut in_string, mut escaped) = (String::new(), 0_usize, false, false);
    let mut rest = json.chars().filter(|c| !c.is_control() || *c == '\u{7f}').peekable();
    let indent = |text: &mut String, depth: usize| {
        text.push('\n');
        text.push_str(&"  ".repeat(depth));
    };
    while let Some(c) = rest.next() {
        if in_string {
            text.push(c);
            in_string = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            ' ' => {}
            '{' | '[' => {
                text.push(c);
                while rest.peek() == Some(&' ') {
                    rest.next();
                }
                if matches!(rest.peek(), Some('}' | ']')) {
                    text.extend(rest.next());
                } else {
                    depth += 1;
                    indent(&mut text, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                indent(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                indent(&mut text, depth);
            }
            ':' => text.push_str(": "),
            _ => {
                in_string = c == '"';
                text.push(c);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_and_otherwise_as_it_was() {
        let json = r#"{"b":[1.50,{ }, "x, \"{y}\\"],"a":{"n":12345678901234567890123},"e":[]}"#;
        let laid_out = pretty(json);
        let back: String = laid_out.lines().map(str::trim_start).collect::<String>().replace("\": ", "\":");
        assert_eq!(back, json.replace("{ }, ", "{},"), "{laid_out}");
        assert!(laid_out.starts_with("{\n  \"b\": [\n    1.50,\n    {},\n"), "{laid_out}");
    }

    #[test]
    fn a_table_fits_where_it_can() {
        let mut table = Table::new(&["PLACE", "KEY", "N", "ERROR"]).last_beneath();
        table.row(&["a-long-place/1".into(), "k".repeat(20), "1".into(), "it is\tfull".into()]);
        let wide = format!("a-long-place/1  {}  1  it is full\n", "k".repeat(20));
        assert_eq!(table.fit(None, false), wide);
        assert_eq!(table.fit(Some(wide.len() - 1), false), wide);
        assert_eq!(table.fit(Some(30), false), "a-long-place/1  kkkkkkkkkk…  1\n  it is full\n");
        assert_eq!(table.fit(Some(3), false), "a-long-place/1  kkkkk…  1\n  …\n");
    }

    #[test]
    fn spans_are_short() {
        let texts = [0, 59, 60, 7_199, 90_000].map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(texts, ["0s", "59s", "1m", "1h", "1d"]);
    }
}
