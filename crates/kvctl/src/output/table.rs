//! Tables: columns aligned by display width, no rules, colours by row.

use std::io;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table as Layout, presets};

use super::Output;

/// Severity of a row, shown as its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Normal; no colour.
    #[default]
    Plain,
    /// A problem that is expected to pass.
    Warning,
    /// An error.
    Bad,
}

impl Tone {
    fn paint(self, line: &str) -> String {
        match self {
            Tone::Plain => line.to_owned(),
            Tone::Warning => format!("\x1b[33m{line}\x1b[0m"),
            Tone::Bad => format!("\x1b[31m{line}\x1b[0m"),
        }
    }
}

/// A column: its heading and its alignment.
pub struct Column(pub &'static str, pub Align);

/// Alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// A table: rows under headings.
pub struct Table {
    layout: Layout,
    tones: Vec<Tone>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[Column]) -> Table {
        let mut layout = Layout::new();
        layout.load_preset(presets::NOTHING);
        layout.set_content_arrangement(ContentArrangement::Disabled);
        layout.set_header(columns.iter().map(|column| column.0));
        for (place, column) in columns.iter().enumerate() {
            if let Some(layout) = layout.column_mut(place) {
                layout.set_padding((0, 2));
                layout.set_cell_alignment(match column.1 {
                    Align::Left => CellAlignment::Left,
                    Align::Right => CellAlignment::Right,
                });
            }
        }
        Table { layout, tones: Vec::new() }
    }

    /// Adds a row; its cells must not contain line ends or control characters.
    pub fn row(&mut self, tone: Tone, cells: Vec<String>) {
        debug_assert!(!cells.iter().any(|cell| cell.contains(char::is_control)));
        self.layout.add_row(cells.into_iter().map(Cell::new));
        self.tones.push(tone);
    }

    /// The lines of the table, coloured if `color` is set.
    pub fn lines(&self, color: bool) -> Vec<String> {
        let mut lines: Vec<String> =
            self.layout.lines().map(|line| line.trim_end().to_owned()).collect();
        if color {
            let tones = [None].into_iter().chain(self.tones.iter().copied().map(Some));
            for (line, tone) in lines.iter_mut().zip(tones) {
                *line = match tone {
                    None => format!("\x1b[1m{line}\x1b[0m"),
                    Some(tone) => tone.paint(line),
                };
            }
        }
        lines
    }
}

impl Output {
    /// Writes a table, coloured if the output allows it.
    pub fn table(&mut self, table: &Table) -> io::Result<()> {
        let color = self.color;
        table.lines(color).iter().try_for_each(|line| self.line(line))
    }
}

/// A line, coloured if `color` is set.
pub fn painted(tone: Tone, line: &str, color: bool) -> String {
    if color { tone.paint(line) } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&[Column("KEY", Align::Left), Column("BYTES", Align::Right)]);
        table.row(Tone::Plain, vec!["世界".into(), "7".into()]);
        table.row(Tone::Bad, vec!["longer".into(), "34924".into()]);
        table
    }

    #[test]
    fn columns_align_by_display_width() {
        assert_eq!(sample().lines(false), ["KEY     BYTES", "世界        7", "longer  34924"]);
    }

    #[test]
    fn colour_marks_the_row_and_nothing_else() {
        let lines = sample().lines(true);
        assert_eq!(lines[0], "\x1b[1mKEY     BYTES\x1b[0m");
        assert_eq!(lines[1], "世界        7");
        assert_eq!(lines[2], "\x1b[31mlonger  34924\x1b[0m");
    }
}
