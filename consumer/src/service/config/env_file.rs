//! The `.env` file.

/// Loads `.env` into the environment, which takes precedence. Values are literal, except for quotes and
/// backslash escapes: a `$` in a password is a `$`.
pub(super) fn read() -> Result<(), String> {
    let text = match std::fs::read_to_string(".env") {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{error}; mend the file or move it away")),
    };
    for (number, line) in text.lines().enumerate() {
        // Some editors write a byte order mark.
        let line = line.trim_start_matches('\u{feff}');
        dotenvy::from_read(literal(line).as_bytes()).map_err(|_| {
            // The line may contain a password.
            format!("line {} is not NAME=value; put a value with spaces, quotes or backslashes in 'single quotes'", number + 1)
        })?;
    }
    Ok(())
}

/// A line of `.env` with every `$` escaped. Single quotes need no escape.
fn literal(line: &str) -> String {
    let value = line.split_once('=').map_or(line, |(_, value)| value).trim_start();
    if value.starts_with('\'') {
        return line.to_owned();
    }
    let (mut literal, mut escaped) = (String::with_capacity(line.len()), false);
    for character in line.chars() {
        if character == '$' && !escaped {
            literal.push('\\');
        }
        escaped = character == '\\' && !escaped;
        literal.push(character);
    }
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dollar_is_a_dollar() {
        for (line, literally) in [
            ("A=pa$$word", "A=pa\\$\\$word"),
            ("A=\"$x\"", "A=\"\\$x\""),
            ("A='$x'", "A='$x'"),
            ("A=\\$x", "A=\\$x"),
            ("A=\"\\\\$x\"", "A=\"\\\\\\$x\""),
            ("# don't $x", "# don't \\$x"),
        ] {
            assert_eq!(literal(line), literally);
        }
    }
}
