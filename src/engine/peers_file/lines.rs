//! Lines of a text.

/// Where the lines of a text begin.
#[derive(Debug)]
pub struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub fn of(text: &'a str) -> Self {
        let after = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Lines { text, starts: std::iter::once(0).chain(after).collect() }
    }

    /// The line of a byte, from 1.
    pub fn at(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// What is in the same line before a byte.
    pub fn before(&self, offset: usize) -> &'a str {
        let start = self.at(offset).checked_sub(1).and_then(|line| self.starts.get(line));
        start.and_then(|start| self.text.get(*start..offset)).unwrap_or_default()
    }

    /// The characters from the start of the line to a byte, itself included.
    pub fn column(&self, offset: usize) -> usize {
        self.before(offset).chars().count() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one() {
        let lines = Lines::of("a\n\né é\n");
        for (offset, line, column) in
            [(0, 1, 1), (1, 1, 2), (2, 2, 1), (3, 3, 1), (6, 3, 3), (9, 4, 1)]
        {
            assert_eq!((lines.at(offset), lines.column(offset)), (line, column), "{offset}");
        }
        assert_eq!(lines.before(6), "é ");
        assert_eq!(Lines::of("").at(0), 1);
    }
}
