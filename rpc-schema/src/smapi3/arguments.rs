//! A SMAPIv3 call's arguments, read as tolerantly as upstream reads them.
//!
//! XAPI's side may write keys in another case, leave names in that we don't know, and write an
//! integer as a decimal string (ocaml-rpc, `rpcmarshal.ml`). A person gives them by position, as
//! upstream's generated Python does. Both become the object that the daemon takes, or a text that
//! names the parameter and never repeats its value: it may be a secret, and ends up in XAPI's log.

use serde_json::{Map, Value};

/// What kind of value a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// An integer of 64 bits, or a string of decimal digits.
    Number,
    /// `true` or `false`.
    Flag,
    /// An object of strings; by position, `--name KEY VALUE`, any number of times.
    Pairs,
}

impl Kind {
    fn named(self) -> &'static str {
        match self {
            Kind::Text => "a string",
            Kind::Number => "an integer",
            Kind::Flag => "true or false",
            Kind::Pairs => "an object of strings",
        }
    }

    /// The value as the daemon takes it; none when it is of another kind.
    fn accept(self, value: Value) -> Option<Value> {
        let accepted = match (self, &value) {
            (Kind::Text, Value::String(_)) | (Kind::Flag, Value::Bool(_)) => value,
            (Kind::Number, Value::Number(number)) if number.is_i64() => value,
            (Kind::Number, Value::String(digits)) => Value::from(digits.parse::<i64>().ok()?),
            (Kind::Pairs, Value::Object(pairs)) if pairs.values().all(Value::is_string) => value,
            _ => return None,
        };
        Some(accepted)
    }

    /// The value that a word of a command line means.
    fn of_word(self, word: &str) -> Option<Value> {
        match self {
            Kind::Flag => word.parse::<bool>().ok().map(Value::from),
            Kind::Text | Kind::Number => self.accept(Value::from(word)),
            Kind::Pairs => None,
        }
    }
}

/// A Rust type that a parameter may have.
pub trait Argument {
    /// Its kind.
    const KIND: Kind;
}
impl Argument for String {
    const KIND: Kind = Kind::Text;
}
impl Argument for i64 {
    const KIND: Kind = Kind::Number;
}
impl Argument for bool {
    const KIND: Kind = Kind::Flag;
}
impl Argument for crate::smapi2::Pairs {
    const KIND: Kind = Kind::Pairs;
}

/// One parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name in the object.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
}

/// A method's parameters in the order of the interface definition, which is that of positions.
pub trait Arguments {
    /// All but `dbg`, which always comes first.
    const FIELDS: &'static [Field];
}

const DBG: Field = Field { name: "dbg", kind: Kind::Text };

fn wrong(field: Field) -> String {
    format!("its parameter `{}` must be {}", field.name, field.kind.named())
}

/// The object that the daemon takes, out of one as XAPI's side may write it.
///
/// # Errors
/// Which parameter is missing or of the wrong kind.
pub fn from_object(fields: &[Field], mut given: Map<String, Value>) -> Result<Value, String> {
    let mut object = Map::new();
    for field in std::iter::once(DBG).chain(fields.iter().copied()) {
        let exact = given.remove(field.name);
        let found = exact.or_else(|| {
            let name = given.keys().find(|name| name.eq_ignore_ascii_case(field.name))?.clone();
            given.remove(&name)
        });
        match found {
            Some(value) => {
                let value = field.kind.accept(value).ok_or_else(|| wrong(field))?;
                object.insert(field.name.into(), value);
            }
            None if field == DBG => {}
            None => return Err(format!("its parameter `{}` is missing", field.name)),
        }
    }
    Ok(Value::Object(object))
}

/// The object that the daemon takes, out of the words of a command line: `dbg` and what follows.
///
/// # Errors
/// Which parameter is missing, of the wrong kind, or too much.
pub fn from_words(fields: &[Field], words: &[String]) -> Result<Value, String> {
    let mut object = Map::new();
    for field in fields.iter().filter(|field| field.kind == Kind::Pairs) {
        object.insert(field.name.into(), Value::Object(Map::new()));
    }
    let positions = std::iter::once(DBG).chain(fields.iter().copied());
    let mut positions = positions.filter(|field| field.kind != Kind::Pairs);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let option = word.strip_prefix("--").unwrap_or_default();
        if let Some(Value::Object(pairs)) = object.get_mut(option) {
            let missing = || format!("--{option} takes two words, a key and its value");
            let key = words.next().ok_or_else(missing)?;
            let value = words.next().ok_or_else(missing)?;
            pairs.insert(key.clone(), Value::from(value.as_str()));
            continue;
        }
        let field = positions.next().ok_or("there are more words than parameters")?;
        let value = field.kind.of_word(word).ok_or_else(|| wrong(field))?;
        object.insert(field.name.into(), value);
    }
    match positions.next() {
        Some(field) => Err(format!("its parameter `{}` is missing", field.name)),
        None => Ok(Value::Object(object)),
    }
}

/// How a person calls it, after the program's name.
#[must_use]
pub fn usage(fields: &[Field]) -> String {
    let mut usage = String::from("DBG");
    for Field { name, kind } in fields {
        usage += &match kind {
            Kind::Pairs => format!(" [--{name} KEY VALUE]..."),
            Kind::Flag => format!(" {}:true|false", name.to_uppercase()),
            _ => format!(" {}", name.to_uppercase()),
        };
    }
    usage
}
