//! JSON with Python's conventions: its separators and escapes, and the non-standard numbers that it accepts.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// Formats `value` like Python's `json.dumps`. The order of keys is kept.
pub fn dumps<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // Strings, numbers, lists and maps with string keys cannot fail to serialize to a vector.
    let _ = value.serialize(&mut Serializer::with_formatter(&mut out, Python));
    out
}

/// Separators `", "` and `": "`; everything except printable ASCII is escaped; floats are formatted like `repr`.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for c in fragment.chars() {
            match c {
                ' '..='~' => writer.write_all(&[c as u8])?,
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::Quote => writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => writer.write_all(b"\\\\"),
            CharEscape::Solidus => writer.write_all(b"/"),
            CharEscape::Backspace => writer.write_all(b"\\b"),
            CharEscape::FormFeed => writer.write_all(b"\\f"),
            CharEscape::LineFeed => writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => writer.write_all(b"\\r"),
            CharEscape::Tab => writer.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(writer, "\\u{byte:04x}"),
        }
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(repr(value).as_bytes())
    }
}

/// Formats a finite float like Python's `repr`: the shortest digits that round-trip, with an exponent below 1e-4 and from
/// 1e16.
fn repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    match exponent {
        -4..16 => format!("{value:?}"),
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// Maximum nesting. Python's parser fails near its recursion limit of 1,000.
const MAX_DEPTH: usize = 1000;

/// The position of the first error if Python's `json.loads`, which accepts `NaN` and `Infinity`, cannot read `text`.
pub fn fault(text: &str) -> Option<usize> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    match scan.document() {
        Some(()) => None,
        None => Some(scan.at),
    }
}

/// A parser that checks syntax only, without recursion.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn document(&mut self) -> Option<()> {
        // The closing brackets of all open lists and objects.
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.space();
            // A value, or the start of a list or object.
            match self.peek()? {
                bracket @ (b'[' | b'{') => {
                    self.at += 1;
                    self.space();
                    let close = if bracket == b'[' { b']' } else { b'}' };
                    if self.peek()? == close {
                        self.at += 1;
                    } else {
                        open.push(close);
                        if open.len() > MAX_DEPTH {
                            return None;
                        }
                        self.key(close)?;
                        continue;
                    }
                }
                b'"' => self.string()?,
                _ => self.word()?,
            }
            // After a value: closing brackets, then a comma or the end.
            loop {
                self.space();
                let Some(&close) = open.last() else {
                    return (self.at == self.bytes.len()).then_some(());
                };
                let next = self.peek()?;
                if next == close {
                    self.at += 1;
                    open.pop();
                } else if next == b',' {
                    self.at += 1;
                    self.space();
                    self.key(close)?;
                    break;
                } else {
                    return None;
                }
            }
        }
    }

    /// Inside an object, reads the key and the colon.
    fn key(&mut self, close: u8) -> Option<()> {
        if close == b'}' {
            if self.peek()? != b'"' {
                return None;
            }
            self.string()?;
            self.space();
            self.take(b":")?;
        }
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        self.take(b"\"")?;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => match self.bytes.get(self.at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 2,
                    b'u' => {
                        let digits = self.bytes.get(self.at + 2..self.at + 6)?;
                        if !digits.iter().all(u8::is_ascii_hexdigit) {
                            return None;
                        }
                        self.at += 6;
                    }
                    _ => return None,
                },
                ..b' ' => return None,
                _ => self.at += 1,
            }
        }
    }

    fn word(&mut self) -> Option<()> {
        for word in ["null", "true", "false", "NaN", "Infinity", "-Infinity"] {
            if self.take(word.as_bytes()).is_some() {
                return Some(());
            }
        }
        let _ = self.take(b"-");
        match self.peek()? {
            b'0' => self.at += 1,
            _ => self.digits()?,
        }
        if self.take(b".").is_some() {
            self.digits()?;
        }
        if self.take(b"e").or_else(|| self.take(b"E")).is_some() {
            let _ = self.take(b"+").or_else(|| self.take(b"-"));
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let rest = self.bytes.get(self.at..)?;
        let n = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += n;
        (n > 0).then_some(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, word: &[u8]) -> Option<()> {
        self.bytes.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }
}

#[cfg(test)]
mod tests {
    use super::{dumps, fault, repr};
    use proptest::prelude::*;

    #[test]
    fn dumps_formats_like_python() {
        let value = serde_json::json!({"b": [1, null, "é\u{7f}\u{1f600}\n\u{1}\"\\/"], "a": {}, "c": []});
        let expected = r#"{"b": [1, null, "\u00e9\u007f\ud83d\ude00\n\u0001\"\\/"], "a": {}, "c": []}"#;
        assert_eq!(String::from_utf8(dumps(&value)).unwrap(), expected);
    }

    #[test]
    fn repr_formats_like_python() {
        for (value, text) in [
            (1.0, "1.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (1e-4, "0.0001"),
            (-1e300, "-1e+300"),
            (1e15, "1000000000000000.0"),
        ] {
            assert_eq!(repr(value), text);
        }
    }

    #[test]
    fn fault_accepts_what_python_accepts() {
        for text in ["NaN", "[Infinity, -Infinity]", "{\"a\": NaN}", " 1 ", "\"\\ud800\"", "1e400", "-0"] {
            assert_eq!(fault(text), None, "{text}");
        }
        for text in
            ["", "nan", "[1,]", "{1: 2}", "01", "1.", "+1", "\"a", "[", "[]]", "\"\\x\"", "\"\n\"", "{\"a\"}", "-"]
        {
            assert!(fault(text).is_some(), "{text}");
        }
        assert!(fault(&"[".repeat(1_000_000)).is_some());
    }

    proptest! {
        #[test]
        fn the_checker_agrees_with_serde(text in "[\\[\\]{}\",:0-9eE+.tru -]{0,12}") {
            let serde = serde_json::from_str::<serde_json::Value>(&text);
            // serde refuses numbers beyond the range of f64, which Python accepts.
            let range = serde.as_ref().err().is_some_and(|error| error.to_string().contains("out of range"));
            prop_assert_eq!(fault(&text).is_none(), serde.is_ok() || range, "{:?}", serde);
        }
    }
}
