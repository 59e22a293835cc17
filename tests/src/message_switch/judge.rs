//! Whether an answer is what upstream's reader takes, to the byte: JSON-RPC 1.0, in upstream's
//! order, no null where a field is absent, no float where an integer is due.

use serde_json::Value;

/// Judges the envelope of an answer.
pub(super) fn envelope(text: &str) -> Result<(), String> {
    let answer: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let success = text.starts_with("{\"result\":") && text.ends_with(",\"error\":null,\"id\":0}");
    let failure = text.starts_with("{\"result\":null,\"error\":") && text.ends_with(",\"id\":0}");
    if !success && !failure {
        return Err("no answer of JSON-RPC 1.0 as upstream writes it".into());
    }
    if answer.as_object().is_none_or(|answer| answer.len() != 3) {
        return Err("an answer has result, error and id".into());
    }
    if !answer["error"].is_null() {
        error(&answer["error"])?;
    }
    plain(&answer["result"], true)
}

/// `"Tag"` or `["Tag", payload]`.
fn error(error: &Value) -> Result<(), String> {
    let tagged = |items: &Vec<Value>| items.len() == 2 && items[0].is_string();
    if error.is_string() || error.as_array().is_some_and(tagged) {
        return plain(error, false);
    }
    Err(format!("an error is a variant, not {error}"))
}

fn plain(value: &Value, top: bool) -> Result<(), String> {
    match value {
        Value::Null if !top => Err("a null where a field should be absent".into()),
        Value::Number(number) if number.is_f64() => Err(format!("{number} is a float")),
        Value::Array(items) => items.iter().try_for_each(|item| plain(item, false)),
        Value::Object(fields) => fields.values().try_for_each(|field| plain(field, false)),
        _ => Ok(()),
    }
}
