//! The values of fields, by their TOML types.

use std::num::NonZeroU16;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;
use toml::value::{Date, Offset, Time};

use super::fault::{Mistake, quoted};
use super::field::Field;

/// The shortest lease, in seconds: a client says hello every 27.
const SHORTEST: u64 = 30;

const DAY: i64 = 86_400;

/// Days from the first of March of the year 0 to 1970-01-01.
const TO_1970: i64 = 719_468;

/// The values of a list, or the one that stands there without brackets.
pub fn items<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Vec<&'a Spanned<DeValue<'i>>> {
    match value.get_ref() {
        DeValue::Array(values) => values.iter().collect(),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Table(_) => vec![value],
    }
}

pub fn text<'a>(field: Field, value: &'a DeValue<'_>) -> Result<&'a str, Mistake> {
    value.as_str().ok_or_else(|| wrong_type(field, value, "write a text, in quotes"))
}

pub fn boolean(field: Field, value: &DeValue) -> Result<bool, Mistake> {
    value.as_bool().ok_or_else(|| wrong_type(field, value, "write true or false, without quotes"))
}

/// Reads whole seconds, as a number or as a text that may have a unit: `90`, `"90"`, `"90s"`, `"3m"`,
/// `"1h"`, `"1d"`.
pub fn lifetime(value: &DeValue) -> Result<Duration, Mistake> {
    const FORMS: &str = "write it as \"30s\", \"3m\", \"1h\" or \"1d\", or as a number of seconds";
    let (written, radix) = match value {
        DeValue::Integer(number) => (number.as_str(), number.radix()),
        DeValue::String(text) => (text.trim(), 10),
        DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => return Err(wrong_type(Field::Lifetime, value, FORMS)),
    };
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let with = |(letter, unit)| Some((written.strip_suffix(letter)?.trim_end(), unit));
    let unit = units.into_iter().filter(|_| value.is_str()).find_map(with);
    let (number, unit) = unit.unwrap_or((written, 1));
    let has_sign = number.starts_with(['+', '-']);
    let number = u64::from_str_radix(number, radix).ok().filter(|_| !has_sign);
    let seconds = number.and_then(|number| number.checked_mul(unit));
    match seconds {
        None => {
            Err(Mistake::new(format!("`lifetime` {} is not a duration", quoted(written)), FORMS))
        }
        Some(many) if u32::try_from(many).is_err() => {
            let what = format!("`lifetime` is {many} s");
            Err(Mistake::new(what, format!("give at most {} s", u32::MAX)))
        }
        Some(few) if few < SHORTEST => Err(Mistake::new(
            format!("`lifetime` is {few} s"),
            format!("give at least {SHORTEST} s, as a client says hello every 27"),
        )),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

/// When a peer expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Never, whatever the defaults say.
    Never,
    /// At this Unix time.
    At(u64),
}

/// Reads the first second after a date, or that of a time; a local time is UTC.
pub fn expires(value: &DeValue) -> Result<Expiry, Mistake> {
    const FORMS: &str = "write a date, as 2027-01-31, or a date and a time, as \
                         2027-01-31T18:00:00+01:00, both without quotes; or \"never\"";
    let at = match value {
        DeValue::Datetime(at) => at,
        DeValue::String(text) if text.trim() == "never" => return Ok(Expiry::Never),
        DeValue::String(text) => {
            let what = format!("`expires` is the text {}", quoted(text));
            return Err(Mistake::new(what, FORMS));
        }
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => return Err(wrong_type(Field::Expires, value, FORMS)),
    };
    let (Some(date), time) = (at.date, at.time) else {
        return Err(Mistake::new("`expires` is a time without a date", FORMS));
    };
    let start = days_since_1970(date) * DAY;
    let unix = match time {
        None => start + DAY,
        Some(time) => start + seconds_of_day(time) - east(at.offset),
    };
    Ok(Expiry::At(unix.try_into().unwrap_or(0))) // before 1970 is long ago
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_1970(date: Date) -> i64 {
    let (year, month, day) = (i64::from(date.year), i64::from(date.month), i64::from(date.day));
    // Years begin in March, so that the day that some of them lack is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let in_year = (153 * month + 2) / 5 + day - 1; // 153 days in five months from March or August
    year * 365 + leap_days + in_year - TO_1970
}

/// The time from which a peer has expired, as a file would have it: its last day, or a time in UTC.
pub fn written(expires: Option<u64>) -> String {
    let Some(unix) = expires else { return "never".to_owned() };
    let (days, second) = (unix.div_euclid(DAY.unsigned_abs()), unix % DAY.unsigned_abs());
    let date = |days: u64| {
        let (year, month, day) = date_after_1970(days);
        format!("{year:04}-{month:02}-{day:02}")
    };
    match (days.checked_sub(1), second) {
        (Some(last), 0) => date(last),
        (Some(_) | None, second) => {
            let [hour, minute, second] = [second / 3600, second / 60 % 60, second % 60];
            format!("{}T{hour:02}:{minute:02}:{second:02}Z", date(days))
        }
    }
}

/// Year, month and day of the Gregorian calendar so many days after 1970-01-01.
fn date_after_1970(days: u64) -> (u64, u64, u64) {
    // As in `days_since_1970`: from the first of March of the year 0, in spans of 400 years.
    let days = days + TO_1970.unsigned_abs();
    let (span, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // from March
    let day = day - (153 * month + 2) / 5 + 1;
    let (later, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    (span * 400 + year + later, month, day)
}

/// The second of the day, the next one for a part of a second.
fn seconds_of_day(time: Time) -> i64 {
    let part = i64::from(time.nanosecond.is_some_and(|part| part > 0));
    let minutes = i64::from(time.hour) * 60 + i64::from(time.minute);
    minutes * 60 + i64::from(time.second.unwrap_or(0)) + part
}

/// How many seconds a clock is ahead of UTC.
fn east(offset: Option<Offset>) -> i64 {
    match offset {
        None | Some(Offset::Z) => 0,
        Some(Offset::Custom { minutes }) => i64::from(minutes) * 60,
    }
}

/// Reads the UDP port that a peer sends to. `own` is the server's own.
pub fn port(value: &DeValue, own: Option<NonZeroU16>) -> Result<NonZeroU16, Mistake> {
    const FORM: &str = "write the port that it sends to, as `old = 10003`";
    let DeValue::Integer(written) = value else {
        return Err(wrong_type(Field::Old, value, FORM));
    };
    let number = u16::from_str_radix(written.as_str(), written.radix()).ok();
    let port = number.and_then(NonZeroU16::new).ok_or_else(|| {
        Mistake::new(format!("`old` {} is not a UDP port", quoted(written.as_str())), FORM)
    })?;
    match own == Some(port) {
        false => Ok(port),
        true => Err(Mistake::new(
            format!("`old` {port} is the server's own port"),
            "write the port that this peer alone sends to, or give the server another one",
        )),
    }
}

pub fn wrong_type(field: Field, value: &DeValue, todo: &str) -> Mistake {
    Mistake::new(format!("`{}` is {}", field.name(), kind(value)), todo)
}

/// What a value is, for people.
pub fn kind(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(text: &str, parse: impl Fn(&DeValue) -> Result<T, Mistake>) -> Option<T> {
        let value = DeValue::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        parse(value.get_ref()).ok()
    }

    #[test]
    fn lifetimes_have_units_and_bounds() {
        for (text, seconds) in [
            ("\"30s\"", 30),
            ("\"3m\"", 180),
            ("\" 1 h \"", 3600),
            ("\"1d\"", 86_400),
            ("\"90\"", 90),
            ("90", 90),
            ("1_000", 1000),
            ("0x1e", 30),
            ("4294967295", 4_294_967_295),
        ] {
            let expected = Some(Duration::from_secs(seconds));
            assert_eq!(read(text, lifetime), expected, "{text}");
        }
        for text in [
            "0",
            "29",
            "\"29s\"",
            "-30",
            "+30.0",
            "90.5",
            "\"90.5\"",
            "\"+90\"",
            "\"-90s\"",
            "\"\"",
            "\"m\"",
            "\"3 minutes\"",
            "\"3M\"",
            "\"1h30m\"",
            "4294967296",
            "\"99999999999999999999h\"",
            "\"9223372036854775807d\"",
            "true",
            "[90]",
        ] {
            assert_eq!(read(text, lifetime), None, "{text}");
        }
    }

    #[test]
    fn a_date_lasts_until_its_end_and_a_time_until_it_comes() {
        for (text, unix) in [
            ("1970-01-01", 86_400),
            ("2000-02-28", 951_782_400),
            ("2000-02-29", 951_868_800),
            ("2000-12-31", 978_307_200),
            ("2100-02-28", 4_107_542_400),
            ("2027-01-31", 1_801_440_000),
            ("9999-12-31", 253_402_300_800),
            ("2027-01-31T00:00:00Z", 1_801_353_600),
            ("2027-01-31T00:00:00", 1_801_353_600),
            ("2027-01-31 00:00:00.000", 1_801_353_600),
            ("2027-01-31T00:00:00.001Z", 1_801_353_601),
            ("2027-01-31T18:30:15+01:30", 1_801_414_815),
            ("2027-01-31T18:30:15-01:30", 1_801_425_615),
            ("0000-01-01", 0),
            ("1969-12-31T23:59:59Z", 0),
        ] {
            assert_eq!(read(text, expires), Some(Expiry::At(unix)), "{text}");
        }
        assert_eq!(read("\"never\"", expires), Some(Expiry::Never));
        assert_eq!(written(None), "never");
        for text in ["1970-01-01", "1970-01-01T00:00:00Z", "2027-01-31T18:30:15Z"] {
            let Some(Expiry::At(unix)) = read(text, expires) else { panic!("{text}") };
            assert_eq!(written(Some(unix)), text);
        }
        // Every day of eight hundred years is the one that it was read as.
        for day in 1..=292_194 {
            let text = written(Some(day * 86_400));
            assert_eq!(read(&text, expires), Some(Expiry::At(day * 86_400)), "{text}");
        }
        for text in ["18:00:00", "\"2027-01-31\"", "1801353600", "true", "[2027-01-31]"] {
            assert_eq!(read(text, expires), None, "{text}");
        }
    }
}
