//! Takes a peer out of the text of a peers file: its own comments go with it, all others stay.

use std::ops::Range;

use toml_edit::{Document, DocumentMut, Item, Key, Table};

use super::PeerName;

/// The text without a peer, empty when nothing but blanks is left; `None`: it does not name the peer.
///
/// The comments of a peer are those among its lines, and those directly above and below them, up to the first
/// empty line. Where no empty line is between two peers, they belong to the one below.
pub fn without(text: &str, name: &PeerName) -> Option<String> {
    let document = Document::parse(text).ok()?;
    let (key, all) = document.as_table().get_key_value("peer")?;
    let peers = all.as_table_like()?;
    peers.get(name.as_str())?;
    let is_only = peers.len() == 1;
    if all.is_inline_table() && !is_only {
        return without_inline(text, name); // all in one line
    }
    let mut marks = Marks::new(text);
    for (other, item) in pairs(document.as_table()).filter(|(other, _)| other.get() != key.get()) {
        marks.item(other, item, Line::Other);
    }
    match all.as_table().filter(|_| !is_only) {
        Some(peers) => {
            marks.header(peers, Line::Other);
            for (peer, item) in pairs(peers) {
                let is_gone = peer.get() == name.as_str();
                marks.item(peer, item, if is_gone { Line::Own } else { Line::Other });
            }
        }
        None => marks.item(key, all, Line::Own),
    }
    Some(marks.rest())
}

fn without_inline(text: &str, name: &PeerName) -> Option<String> {
    let mut document: DocumentMut = text.parse().ok()?;
    document.get_mut("peer")?.as_table_like_mut()?.remove(name.as_str())?;
    Some(document.to_string())
}

/// The keys of a table, and what they have.
fn pairs(table: &Table) -> impl Iterator<Item = (&Key, &Item)> {
    table.iter().filter_map(|(key, _)| table.get_key_value(key))
}

/// What stands in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Blank,
    Comment,
    /// A header or a value of the peer that goes.
    Own,
    /// One of somebody else.
    Other,
}

impl Line {
    fn is_empty(self) -> bool {
        match self {
            Line::Blank | Line::Comment => true,
            Line::Own | Line::Other => false,
        }
    }
}

/// What stands in each line of a text.
struct Marks<'a> {
    lines: Vec<(&'a str, Line)>,
    /// Where each begins, in bytes.
    begins: Vec<usize>,
}

impl<'a> Marks<'a> {
    fn new(text: &'a str) -> Self {
        let (mut lines, mut begins, mut at) = (Vec::new(), Vec::new(), 0);
        for line in text.split_inclusive('\n') {
            let is_blank = line.trim().is_empty();
            lines.push((line, if is_blank { Line::Blank } else { Line::Comment }));
            begins.push(at);
            at += line.len();
        }
        Marks { lines, begins }
    }

    fn span(&mut self, span: Range<usize>, what: Line) {
        let line = |at: usize| self.begins.partition_point(|begin| *begin <= at).saturating_sub(1);
        let (first, last) = (line(span.start), line(span.end.saturating_sub(1).max(span.start)));
        for (_, line) in self.lines.iter_mut().take(last + 1).skip(first) {
            *line = what;
        }
    }

    fn item(&mut self, key: &Key, item: &Item, what: Line) {
        match item {
            Item::None => {}
            Item::Value(value) => {
                if let (Some(key), Some(value)) = (key.span(), value.span()) {
                    self.span(key.start..value.end, what);
                }
            }
            Item::Table(table) => self.table(table, what),
            Item::ArrayOfTables(tables) => tables.iter().for_each(|table| self.table(table, what)),
        }
    }

    fn table(&mut self, table: &Table, what: Line) {
        self.header(table, what);
        pairs(table).for_each(|(key, item)| self.item(key, item, what));
    }

    fn header(&mut self, table: &Table, what: Line) {
        if let Some(span) = table.span().filter(|_| !table.is_dotted() && !table.is_implicit()) {
            self.span(span, what);
        }
    }

    /// The text without the lines of the peer, and without its comments.
    fn rest(mut self) -> String {
        let mut from = 0;
        while from < self.lines.len() {
            let is_gap = |(_, line): &&(&str, Line)| line.is_empty();
            let len = self.lines.iter().skip(from).take_while(is_gap).count();
            self.gap(from..from + len);
            from += len + 1;
        }
        let (mut rest, mut is_cut, mut before) = (String::new(), false, Line::Blank);
        for (text, line) in self.lines {
            match line {
                Line::Own => is_cut = true,
                // One of the two around what went is enough.
                Line::Blank if is_cut && before == Line::Blank => {}
                Line::Blank | Line::Comment | Line::Other => {
                    is_cut &= line == Line::Blank;
                    before = line;
                    rest += text;
                }
            }
        }
        if is_cut || rest.trim().is_empty() {
            let len = rest.trim_end().len();
            let end = rest.get(len..).and_then(|end| end.find('\n')).map_or(0, |end| end + 1);
            rest.truncate(if len == 0 { 0 } else { len + end });
        }
        rest
    }

    /// Marks the comments of the peer in a gap between headers and values, or before or behind all of them.
    fn gap(&mut self, gap: Range<usize>) {
        let at = |at: usize| self.lines.get(at).map(|(_, line)| *line);
        let above = gap.start.checked_sub(1).and_then(at);
        let below = at(gap.end);
        let blanks: Vec<_> = gap.clone().filter(|line| at(*line) == Some(Line::Blank)).collect();
        let own = |line: Option<Line>| line == Some(Line::Own);
        if own(above) && own(below) {
            return self.own(gap);
        }
        let (first, last) = match (blanks.first(), blanks.last()) {
            (Some(first), Some(last)) => (*first, *last),
            (None, _) | (_, None) if below.is_none() => (gap.end, gap.end),
            (None, _) | (_, None) => (gap.start, gap.start),
        };
        if own(above) {
            self.own(gap.start..first);
        }
        if own(below) {
            self.own(last..gap.end);
        }
    }

    fn own(&mut self, lines: Range<usize>) {
        for line in lines {
            if let Some((_, line)) =
                self.lines.get_mut(line).filter(|(_, line)| *line == Line::Comment)
            {
                *line = Line::Own;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text without some peers.
    fn left(text: &str, names: &[&str]) -> String {
        let gone = |text: String, name: &&str| without(&text, &name.parse().unwrap()).unwrap();
        names.iter().fold(text.to_owned(), gone)
    }

    #[test]
    fn a_peer_takes_its_own_comments_with_it() {
        let text = "\
# The shops of the north.
# Ask Eva before you change one.

# In the harbour.
[peer.anna]   # Eva knows
public-key = \"x\"
# Not yet.

#enabled = false
address = \"10.8.0.7\" # for now
# Behind CGNAT.

# The shops of the south.

[peer.\"b.ob\"]
public-key = \"y\"
# Next month.
[peer.eva]
public-key = \"z\"
#enabled = false

# The end.
";
        let head = "# The shops of the north.\n# Ask Eva before you change one.\n\n";
        let south = "# The shops of the south.\n\n";
        let bob = "[peer.\"b.ob\"]\npublic-key = \"y\"\n";
        let eva = "# Next month.\n[peer.eva]\npublic-key = \"z\"\n#enabled = false\n\n";
        let end = "# The end.\n";
        assert_eq!(left(text, &["anna"]), format!("{head}{south}{bob}{eva}{end}"));
        assert_eq!(left(text, &["anna", "b.ob"]), format!("{head}{south}{eva}{end}"));
        assert_eq!(left(text, &["anna", "eva"]), format!("{head}{south}{bob}\n{end}"));
        assert_eq!(left(text, &["b.ob", "eva", "anna"]), format!("{head}{south}{end}"));
        assert_eq!(without(text, &"b".parse().unwrap()), None);
    }

    #[test]
    fn a_file_is_empty_when_nothing_but_blanks_is_left() {
        for text in [
            "[peer.anna]\nx = 1\n",
            "\n\n# Shops.\n[peer.anna]\nx = 1\n# the last line",
            "[peer]\nanna = { x = 1 }\n",
            "peer = { anna = { x = 1 } }\n\n",
            "peer.anna.x = 1\r\npeer.anna.y = 2\r\n",
        ] {
            assert_eq!(left(text, &["anna"]), "", "{text}");
        }
        let defaults = "[defaults]\nlifetime = \"3m\"\n";
        assert_eq!(left(&format!("{defaults}\n[peer.anna]\nx = 1\n"), &["anna"]), defaults);
        assert_eq!(left(&format!("[peer.anna]\nx = 1\n\n{defaults}"), &["anna"]), defaults);
        assert_eq!(left("[peer.anna]\nx = 1\n\n\n# The end.\n", &["anna"]), "# The end.\n");
    }

    #[test]
    fn a_peer_may_be_written_in_any_way() {
        let other = "[peer.bob]\nnote = '''\n\n# not a comment'''\n";
        for (text, rest) in [
            (format!("{other}[peer.anna]\nx = 1\n"), other),
            (format!("[peer.anna]\nx = 1\n{other}[peer.anna.y]\nx = 2\n"), other),
            (format!("[[peer.anna.y]]\nx = 1\n[[peer.anna.y]]\nx = 2\n{other}"), other),
            ("[peer.anna]\n\n# a\n\n[peer.anna.x]\n\n# end\n".to_owned(), "# end\n"),
            (
                "# all\n[peer]\n# a\nanna = { x = 1 } # z\n\nbob.x = 1\n".to_owned(),
                "# all\n[peer]\n\nbob.x = 1\n",
            ),
            ("a = 1\npeer.anna.x = 1\npeer.bob.x = 1".to_owned(), "a = 1\npeer.bob.x = 1"),
            (
                "# a\npeer = { anna = {}, bob = {} } # b\n".to_owned(),
                "# a\npeer = { bob = {} } # b\n",
            ),
            (
                "\u{feff}[peer.bob]\nx = 1\n[peer.anna]\nx = 1\ny = 1\n[peer.c]\n".to_owned(),
                "\u{feff}[peer.bob]\nx = 1\n[peer.c]\n",
            ),
            (
                "[peer.bob]\r\n\r\n[peer.anna]\r\n\r\n[peer.c]\r\n".to_owned(),
                "[peer.bob]\r\n\r\n[peer.c]\r\n",
            ),
        ] {
            assert_eq!(left(&text, &["anna"]), rest, "{text}");
        }
    }

    proptest::proptest! {
        /// What toml_edit has left without the peer is what the text says without it.
        #[test]
        fn others_are_as_before(parts in proptest::collection::vec(0..PARTS.len(), 1..12)) {
            let text: String = parts.iter().map(|part| PARTS[*part]).collect();
            let Ok(mut expected) = text.parse::<DocumentMut>() else { return Ok(()) };
            let rest = without(&text, &"anna".parse().unwrap());
            let peers = expected.get_mut("peer").and_then(Item::as_table_like_mut);
            let gone = peers.and_then(|peers| peers.remove("anna"));
            proptest::prop_assert_eq!(rest.is_some(), gone.is_some());
            let Some(rest) = rest else { return Ok(()) };
            let values = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
            let (mut expected, mut rest) = (values(&expected.to_string()), values(&rest));
            for table in [&mut expected, &mut rest] {
                // It may be left without a peer.
                table.retain(|_, value| value.as_table().is_none_or(|table| !table.is_empty()));
            }
            proptest::prop_assert_eq!(expected, rest);
        }
    }

    const PARTS: [&str; 12] = [
        "[peer.anna]\n",
        "[peer.bob]\n",
        "[peer.anna.sub]\n",
        "[defaults]\n",
        "[peer]\n",
        "anna.x = 1\n",
        "x = '''\n# no comment\n\n''' # one\n",
        "y = [ # one\n\n# two\n1 ]\n",
        "peer.anna.y = 2\n",
        "bob = { y = 1 }\n",
        "# a comment\n",
        "\n",
    ];
}
