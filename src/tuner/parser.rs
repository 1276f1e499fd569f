//! What the command line of a clone's script takes: its `argparse` declarations, read from the sources as text.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The flags that a script declares.
#[derive(Debug, Default)]
pub struct Parser {
    flags: BTreeMap<String, Flag>,
}

#[derive(Debug, Default)]
struct Flag {
    /// `None` where the text does not say it plainly.
    takes: Option<Takes>,
    kind: Option<Kind>,
    choices: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    One,
    Several,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Integer,
    Number,
}

impl Parser {
    /// The parser that `main` of the script builds, with the functions of the module that it shares with others. `None` if
    /// the sources do not tell all of it, or not of the flags in `known`, which are certain to be there.
    #[must_use]
    pub fn read(script: &str, shared: &str, known: &[&str]) -> Option<Self> {
        let sources = [Source::new(script), Source::new(shared)];
        let mut parser = Self::default();
        let mut seen = BTreeSet::new();
        let mut ahead = vec![(0, "main".to_owned())];
        while let Some((place, name)) = ahead.pop() {
            if !seen.insert((place, name.clone())) {
                continue;
            }
            let source = &sources[place];
            let body = source.functions.get(name.as_str())?.clone();
            for call in source.calls(body)? {
                if call.name == "add_argument" {
                    parser.declare(source, &call);
                    continue;
                }
                let defined = [place, 1]
                    .into_iter()
                    .find(|place| sources[*place].functions.contains_key(call.name));
                match defined {
                    Some(place) => ahead.push((place, call.name.to_owned())),
                    // It may add flags that are not seen here.
                    None if source.mentions_parser(&call) => return None,
                    None => {}
                }
            }
        }
        known
            .iter()
            .all(|flag| parser.flags.contains_key(*flag))
            .then_some(parser)
    }

    fn declare(&mut self, source: &Source, call: &Call) {
        let mut names = Vec::new();
        let mut flag = Flag {
            takes: Some(Takes::One),
            ..Flag::default()
        };
        for argument in source.arguments(call) {
            let code = source.code[argument.clone()].trim();
            let strings = source.strings_in(&argument);
            let Some((keyword, value)) = code.split_once('=') else {
                names.extend(strings);
                continue;
            };
            let value = value.trim();
            match keyword.trim() {
                "action" => {
                    flag.takes = match strings.first() {
                        Some(action) if action.starts_with("store_") => Some(Takes::Nothing),
                        _ => None,
                    }
                }
                "nargs" => {
                    flag.takes = match strings.first() {
                        Some(&("*" | "+")) => Some(Takes::Several),
                        _ => None,
                    }
                }
                "type" => {
                    flag.kind = match value {
                        "int" => Some(Kind::Integer),
                        "float" => Some(Kind::Number),
                        _ => None,
                    }
                }
                "choices"
                    if value
                        .trim_matches(['[', ']', '(', ')'])
                        .trim_matches(is_between)
                        .is_empty() =>
                {
                    flag.choices = strings.into_iter().map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        for name in names {
            self.flags.insert(
                name.to_owned(),
                Flag {
                    choices: flag.choices.clone(),
                    ..flag
                },
            );
        }
    }

    /// What this parser would refuse in these words, in words: the first flag that it does not know, or a value that it
    /// does not take.
    #[must_use]
    pub fn objection(&self, words: &[String]) -> Option<String> {
        let mut left = words.iter().peekable();
        while let Some(word) = left.next() {
            let (name, joined) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.as_str(), None),
            };
            let mut values: Vec<&str> = joined.into_iter().collect();
            while let Some(value) = left.next_if(|next| !next.starts_with("--")) {
                values.push(value);
            }
            let Some(flag) = self.flags.get(name) else {
                return Some(format!("has no {name}"));
            };
            if let Some(objection) = flag.objection(&values) {
                let (taken, found) = objection;
                return Some(format!("takes {taken} for {name}, not {found}"));
            }
        }
        None
    }
}

impl Flag {
    /// What it takes, and what it is given in its place.
    fn objection(&self, values: &[&str]) -> Option<(String, String)> {
        let count = values.len();
        match self.takes? {
            Takes::Nothing if count > 0 => {
                return Some(("no value".to_owned(), format!("{:?}", values[0])));
            }
            Takes::One if count != 1 => {
                return Some(("one value".to_owned(), count.to_string()));
            }
            _ => {}
        }
        // As Python reads them, which takes `1_000`.
        let is_taken = |value: &str| match self.kind {
            Some(Kind::Integer) => value.replace('_', "").parse::<i64>().is_ok(),
            Some(Kind::Number) => value.replace('_', "").parse::<f64>().is_ok(),
            None => self.choices.is_empty() || self.choices.iter().any(|choice| choice == value),
        };
        let value = values.iter().find(|value| !is_taken(value))?;
        let taken = match self.kind {
            Some(Kind::Integer) => "an int".to_owned(),
            Some(Kind::Number) => "a number".to_owned(),
            None => format!("one of {}", self.choices.join(", ")),
        };
        Some((taken, format!("{value:?}")))
    }
}

/// The text of a module, and the same without what is in comments and strings.
struct Source<'a> {
    text: &'a str,
    code: String,
    /// Without their quotes.
    strings: Vec<Range<usize>>,
    /// The bodies of those at the top level.
    functions: BTreeMap<&'a str, Range<usize>>,
}

/// A function is called, with what stands between its parentheses.
struct Call<'a> {
    name: &'a str,
    inside: Range<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str) -> Self {
        let (code, strings) = blank(text);
        let functions = functions(text, &code);
        Self {
            text,
            code,
            strings,
            functions,
        }
    }

    fn strings_in(&self, range: &Range<usize>) -> Vec<&'a str> {
        let first = self
            .strings
            .partition_point(|string| string.start < range.start);
        self.strings[first..]
            .iter()
            .take_while(|string| string.end <= range.end)
            .map(|string| &self.text[string.clone()])
            .collect()
    }

    /// `None` if a parenthesis is not closed.
    fn calls(&self, range: Range<usize>) -> Option<Vec<Call<'a>>> {
        let code = &self.code[range.clone()];
        let mut calls = Vec::new();
        for (at, _) in code.match_indices('(') {
            let name = code[..at].trim_end_matches(is_of_a_name).len();
            let end = at + closing(&code[at..])?;
            if name < at {
                calls.push(Call {
                    name: &self.text[range.start + name..range.start + at],
                    inside: range.start + at + 1..range.start + end,
                });
            }
        }
        Some(calls)
    }

    fn arguments(&self, call: &Call) -> Vec<Range<usize>> {
        let code = &self.code[call.inside.clone()];
        let mut depth = 0;
        let mut start = 0;
        let mut arguments = Vec::new();
        for (at, letter) in code.char_indices() {
            match letter {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => {
                    arguments.push(start..at);
                    start = at + 1;
                }
                _ => {}
            }
        }
        arguments.push(start..code.len());
        arguments
            .into_iter()
            .map(|argument| call.inside.start + argument.start..call.inside.start + argument.end)
            .collect()
    }

    fn mentions_parser(&self, call: &Call) -> bool {
        self.code[call.inside.clone()]
            .split(|letter| !is_of_a_name(letter))
            .any(|word| word == "parser")
    }
}

/// Nothing but this is left of a list of strings.
fn is_between(letter: char) -> bool {
    letter == ',' || letter.is_whitespace()
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Python's text with blanks in the place of its comments and of what is in its strings; and where these are.
fn blank(text: &str) -> (String, Vec<Range<usize>>) {
    let mut code = String::with_capacity(text.len());
    let mut strings = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let at = text.len() - rest.len();
        let length = match letter {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => {
                let triple: String = [letter; 3].iter().collect();
                let quote = if rest.starts_with(&triple) {
                    &triple
                } else {
                    &triple[..1]
                };
                let inside = end_of_string(&rest[quote.len()..], quote);
                strings.push(at + quote.len()..at + quote.len() + inside);
                (quote.len() + inside + quote.len()).min(rest.len())
            }
            _ => {
                code.push(letter);
                rest = &rest[letter.len_utf8()..];
                continue;
            }
        };
        code.extend(std::iter::repeat_n(' ', length));
        rest = &rest[length..];
    }
    (code, strings)
}

/// How far a string goes whose opening quote has been read.
fn end_of_string(text: &str, quote: &str) -> usize {
    let mut is_escaped = false;
    for (at, letter) in text.char_indices() {
        if is_escaped {
            is_escaped = false;
        } else if letter == '\\' {
            is_escaped = true;
        } else if text[at..].starts_with(quote) {
            return at;
        }
    }
    text.len()
}

/// From the opening parenthesis to the one that closes it.
fn closing(code: &str) -> Option<usize> {
    let mut depth = 0;
    code.char_indices()
        .find(|(_, letter)| {
            match letter {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            depth == 0
        })
        .map(|(at, _)| at)
}

/// The functions at the top level, each from its parameters to the next statement there.
fn functions<'a>(text: &'a str, code: &str) -> BTreeMap<&'a str, Range<usize>> {
    let mut found: BTreeMap<&str, Range<usize>> = BTreeMap::new();
    let mut under_way = None;
    let mut at = 0;
    for line in code.split_inclusive('\n') {
        let begins_statement =
            line.starts_with(|letter: char| letter.is_alphabetic() || "_@".contains(letter));
        if begins_statement && let Some((name, start)) = under_way.take() {
            found.insert(name, start..at);
        }
        if let Some(rest) = line.strip_prefix("def ")
            && let Some(length) = rest.find('(')
        {
            let start = at + "def ".len();
            // Behind its own name, which is no call.
            under_way = Some((text[start..start + length].trim(), start + length + 1));
        }
        at += line.len();
    }
    if let Some((name, start)) = under_way {
        found.insert(name, start..at);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"
"""A docstring with parser.add_argument("--in_a_string") in it."""
import argparse
from package.shared import setup_parser_common


def own(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    # parser.add_argument("--commented_out", type=str)
    parser.add_argument(
        "--mode",  # a comment (with a parenthesis
        type=str,
        default="a",
        choices=["a", "b, c"],
        help="not --this, 'nor' (that",
    )
    parser.add_argument('--count', '-c', type=int, help='it\'s a "number"')
    return parser


def never_called(parser):
    parser.add_argument("--unused")


def main():
    parser = setup_parser_common()
    parser = own(parser)
    args = parser.parse_args()
"#;

    const SHARED: &str = r#"
def _helper(
    parser,
) -> None:
    parser.add_argument("--rate", type=float, default=2.0e-6)
    parser.add_argument("--args", type=str, nargs="*")
    parser.add_argument("--backend", choices=[e.value for e in Backend])
    group = parser.add_argument_group("a group")
    group.add_argument("--switch", action="store_true", help=f"in {'braces'}")

def setup_parser_common():
    def nested(value):
        return value
    parser = argparse.ArgumentParser()
    _helper(parser)
    return parser
"#;

    fn objection(parser: &Parser, words: &str) -> Option<String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        parser.objection(&words)
    }

    #[test]
    fn a_parser_is_read_from_the_functions_that_build_it() {
        let parser = Parser::read(SCRIPT, SHARED, &["--mode", "--rate"]).unwrap();
        let names: Vec<&str> = parser.flags.keys().map(String::as_str).collect();
        let expected = [
            "--args",
            "--backend",
            "--count",
            "--mode",
            "--rate",
            "--switch",
            "-c",
        ];
        assert_eq!(names, expected);
        for words in [
            "--mode a --count 3 --rate 2e-4 --args --switch",
            "--args a=1 b=2 --rate=-1.5 --switch",
            "--backend ANYTHING",
            "--count=-3",
        ] {
            assert_eq!(objection(&parser, words), None, "{words}");
        }
        for (words, part) in [
            ("--commented_out 1", "has no --commented_out"),
            ("--unused 1", "has no --unused"),
            ("--in_a_string 1", "has no --in_a_string"),
            ("--rate 1 --mod a", "has no --mod"),
            ("--mode c", "takes one of a, b, c for --mode, not \"c\""),
            ("--count 1.5", "takes an int for --count, not \"1.5\""),
            ("--rate fast", "takes a number for --rate, not \"fast\""),
            ("--rate", "takes one value for --rate, not 0"),
            ("--rate 1 2", "takes one value for --rate, not 2"),
            ("--switch on", "takes no value for --switch, not \"on\""),
            ("--switch=on", "takes no value for --switch, not \"on\""),
        ] {
            assert_eq!(objection(&parser, words).as_deref(), Some(part), "{words}");
        }
    }

    #[test]
    fn what_cannot_be_read_whole_is_not_read() {
        for (script, shared) in [
            ("", ""),
            (SCRIPT, ""),
            ("print('a stub')", SHARED),
            ("def main():\n    pass\n", SHARED),
            // Flags may come from where they are not seen.
            (
                &*SCRIPT.replace("own(parser)", "another_modules(parser)"),
                SHARED,
            ),
            (&*SCRIPT.replace("own(parser)", "own(parser"), SHARED),
            (SCRIPT, &*SHARED.replace("--rate", "--speed")),
        ] {
            assert!(
                Parser::read(script, shared, &["--rate"]).is_none(),
                "{script}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn properties_of_any_text(text in "(def main\\(|parser|add_argument|[(),='\"#\\\\\\n \\[\\]a-zé-]){0,60}") {
            let (code, strings) = blank(&text);
            proptest::prop_assert_eq!(code.len(), text.len());
            proptest::prop_assert!(strings.iter().all(|string| text.get(string.clone()).is_some()));
            let _ = Parser::read(&text, &text, &[]);
        }
    }
}
