//! Tables for people: columns two blanks apart, no lines, so that they also cut well with awk.
//!
//! Text from guests, catalogs and other hosts ends up in cells, so control characters are escaped:
//! a VDI's name cannot move the reader's cursor.

use comfy_table::{CellAlignment, Table, presets::NOTHING};

/// A table with a header row. `right` names the columns, counted from 0, of numbers.
pub(crate) fn columns(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|text| or_dash(&plain(text))));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// One thing: a name and a value a line.
pub(crate) fn properties(rows: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for (name, value) in rows {
        table.add_row([(*name).to_owned(), or_dash(&plain(value))]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// The text with control characters written as escapes; a line break stays one in a property.
pub(crate) fn plain(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' => "\n".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_lean_right() {
        let rows = [vec!["a".into(), "512 B".into()], vec!["longer".into(), "1 MiB".into()]];
        let table = columns(&["NAME", "SIZE"], &[1], &rows);
        assert_eq!(table, "NAME     SIZE\na       512 B\nlonger  1 MiB\n");
    }

    #[test]
    fn an_empty_cell_is_a_dash_and_an_empty_table_is_its_header() {
        assert_eq!(columns(&["A", "B"], &[], &[vec![String::new(), "x".into()]]), "A  B\n-  x\n");
        assert_eq!(columns(&["A", "B"], &[], &[]), "A  B\n");
    }

    #[test]
    fn properties_are_a_name_and_a_value_a_line() {
        let text = properties(&[("State", "connected".into()), ("Worker", String::new())]);
        assert_eq!(text, "State   connected\nWorker  -\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let table = columns(&["NAME"], &[], &[vec!["\u{1b}[2Jgone\r".into()]]);
        assert_eq!(table, "NAME\n\\u{1b}[2Jgone\\r\n");
    }
}
