//! What an operator sees.

/// A number of seconds as people say it: `45 s`, `12 min`, `1 h 05 min`, `2 d 03 h`.
pub(crate) fn duration(seconds: u32) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) if !seconds.is_multiple_of(60) => format!("{minutes} min {:02} s", seconds % 60),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours:02} h"),
    }
}
