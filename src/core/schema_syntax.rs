//! The words of FS.REGISTER and FS.ALTER.

use crate::arguments::{parse_version, Arguments};
use crate::definition::{Extra, Feature, FeatureView, SampleOn, Sampling, Storage};
use crate::error::{shown, Error, Result};
use crate::feature_type::{FeatureType, TypeWord};
use crate::time::parse_duration;
use crate::value::{finite, Refusal, Value};
use crate::windows::aggregation::WindowWords;

/// Words that belong to the contract but to no released version yet: refused by name, not as unknown words.
const NOT_YET: [&str; 2] = ["WHERE", "EXPR"];

/// Reads `[VERSION n] ENTITY name [option ...] SCHEMA feature TYPE ...`.
pub fn parse_registration(view: &[u8], arguments: &mut Arguments<'_>) -> Result<FeatureView> {
    let version = if arguments.take_word("VERSION") { parse_version(arguments.next("VERSION")?)? } else { 1 };
    if !arguments.take_word("ENTITY") {
        return Err(match arguments.peek() {
            Some(word) => Error::syntax(format!("ENTITY is expected, got '{}'", shown(word))),
            None => Error::syntax("ENTITY is missing"),
        });
    }
    let mut definition = FeatureView::new(view, version, arguments.next("entity name")?)?;
    loop {
        if arguments.take_word("SCHEMA") {
            break;
        }
        if arguments.take_word("STORAGE") {
            definition.storage = Storage::ALL[arguments.one_of("STORAGE", &Storage::WORDS)?];
            continue;
        }
        if arguments.take_word("DEDUP") {
            definition.dedup_ms = Some(parse_duration(arguments.next("DEDUP")?)?);
            continue;
        }
        match take_option(arguments)? {
            Some(option) => option.apply(&mut definition),
            None => {
                return Err(match arguments.peek() {
                    Some(word) => Error::syntax(format!("unknown option '{}' before SCHEMA", shown(word))),
                    None => Error::syntax("SCHEMA is missing"),
                })
            }
        }
    }
    while !arguments.is_empty() {
        let feature = parse_feature(view, arguments)?;
        definition.add_feature(feature)?;
    }
    // An alteration can take a TTL away, a registration cannot.
    definition.ttl_was_removed = false;
    definition.check()?;
    Ok(definition)
}

/// One option of a view that may change in place.
#[derive(Debug, Clone, PartialEq)]
enum ViewOption {
    Ttl(Option<i64>),
    Log(bool),
    Maxlen(u64),
    Consumer(bool),
    Extra(Extra),
    Sample(Sampling),
    Description(String),
}

impl ViewOption {
    fn apply(self, view: &mut FeatureView) {
        match self {
            ViewOption::Ttl(ttl_ms) => {
                view.ttl_was_removed = ttl_ms.is_none() && (view.ttl_was_removed || view.ttl_ms.is_some());
                view.ttl_ms = ttl_ms;
            }
            ViewOption::Log(on) => view.log = on,
            ViewOption::Maxlen(n) => view.maxlen = n,
            ViewOption::Consumer(on) => view.consumer = on,
            ViewOption::Extra(extra) => view.extra = extra,
            ViewOption::Sample(sample) => view.sample = sample,
            ViewOption::Description(text) => view.description = text,
        }
    }
}

fn take_option(arguments: &mut Arguments<'_>) -> Result<Option<ViewOption>> {
    let on_off = |arguments: &mut Arguments<'_>, what| Ok::<_, Error>(arguments.one_of(what, &["ON", "OFF"])? == 0);
    Ok(Some(if arguments.take_word("TTL") {
        ViewOption::Ttl(if arguments.take_word("NONE") { None } else { Some(parse_duration(arguments.next("TTL")?)?) })
    } else if arguments.take_word("LOG") {
        ViewOption::Log(on_off(arguments, "LOG")?)
    } else if arguments.take_word("MAXLEN") {
        ViewOption::Maxlen(arguments.number("MAXLEN", 1)?)
    } else if arguments.take_word("CONSUMER") {
        ViewOption::Consumer(on_off(arguments, "CONSUMER")?)
    } else if arguments.take_word("EXTRA") {
        let ignore = arguments.one_of("EXTRA", &["REFUSE", "IGNORE"])? == 1;
        ViewOption::Extra(if ignore { Extra::Ignore } else { Extra::Refuse })
    } else if arguments.take_word("SAMPLE") {
        let text = arguments.next("SAMPLE")?;
        if !arguments.take_word("ON") {
            return Err(Error::syntax("SAMPLE needs ON PUBLISH or ON SERVE after its rate"));
        }
        let on = SampleOn::ALL[arguments.one_of("SAMPLE ON", &["PUBLISH", "SERVE"])?];
        let rate = finite(text)
            .ok_or_else(|| Error::syntax(format!("the rate of SAMPLE must be from 0 to 1, got '{}'", shown(text))))?;
        ViewOption::Sample(Sampling::new(rate, on)?)
    } else if arguments.take_word("DESCRIPTION") {
        ViewOption::Description(text(arguments.next("DESCRIPTION")?)?)
    } else {
        return Ok(None);
    }))
}

fn text(bytes: &[u8]) -> Result<String> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| Error::syntax(format!("'{}' must be UTF-8", shown(bytes))))
}

fn parse_feature(view: &[u8], arguments: &mut Arguments<'_>) -> Result<Feature> {
    let name = arguments.next("feature name")?;
    let word = arguments.next(&format!("the type of feature '{}'", shown(name)))?;
    let (ty, vector_follows_default) = match FeatureType::parse(word)? {
        TypeWord::Whole(ty) => (ty, false),
        TypeWord::Vector => match arguments.peek() {
            Some(n) if n.first().is_some_and(u8::is_ascii_digit) => {
                (FeatureType::vector(arguments.number("VECTOR", 1)?)?, false)
            }
            _ => (FeatureType::Vector(0), true),
        },
    };
    let mut feature = Feature::new(name, ty)?;
    let mut default = None;
    let mut bounds = (None, None);
    let mut window = WindowWords::default();
    loop {
        if arguments.take_word("DEFAULT") {
            default = Some(arguments.next("DEFAULT")?);
        } else if arguments.take_word("TTL") {
            feature.ttl_ms = Some(parse_duration(arguments.next("TTL")?)?);
        } else if arguments.take_word("MIN") {
            bounds.0 = Some(arguments.next("MIN")?);
        } else if arguments.take_word("MAX") {
            bounds.1 = Some(arguments.next("MAX")?);
        } else if arguments.take_word("VALUES") {
            let count = arguments.number("VALUES", 1)?;
            for _ in 0..count {
                feature.allow(text(arguments.next("a value of VALUES")?)?)?;
            }
        } else if arguments.take_word("INPUT") {
            feature.input = true;
        } else if arguments.take_word("DESCRIPTION") {
            feature.description = text(arguments.next("DESCRIPTION")?)?;
        } else if window.take(arguments).map_err(|e| of_feature(&feature.name, view, &e))? {
            // It took AGG, WINDOW or HOP.
        } else if let Some(word) = NOT_YET.iter().find(|w| arguments.take_word(w)) {
            return Err(Error::syntax(format!("{word} is not available in this version")));
        } else {
            break;
        }
    }
    feature.window = window.finish().map_err(|e| of_feature(&feature.name, view, &e))?;
    if vector_follows_default {
        let given = default.ok_or_else(|| {
            Error::syntax(format!("feature '{}' needs its dimension: VECTOR n, or a DEFAULT", feature.name))
        })?;
        feature.ty = FeatureType::vector(vector_length(given))?;
    }
    let view = shown(view);
    let ty = feature.ty;
    let read = |text: &[u8]| Value::from_text(ty, text).map(Value::into_owned);
    set_values(&mut feature, &view, [default, bounds.0, bounds.1], read)?;
    Ok(feature)
}

/// An error of a part, with the names that only the whole knows.
pub(crate) fn of_feature(feature: &str, view: &[u8], error: &Error) -> Error {
    Error::new(error.code, format!("feature '{feature}' of view '{}': {}", shown(view), error.message))
}

/// The dimension that a vector's default, given as a list of numbers, has.
pub(crate) fn vector_length(text: &[u8]) -> u64 {
    let inner = text.trim_ascii();
    if inner.is_empty() || inner == b"[]" {
        return 0;
    }
    inner.iter().filter(|b| **b == b',').count() as u64 + 1
}

/// Sets DEFAULT, MIN and MAX, as `read` understands what is given.
pub(crate) fn set_values<T: AsRef<[u8]> + ?Sized>(
    feature: &mut Feature,
    view: &str,
    [default, min, max]: [Option<&T>; 3],
    read: impl Fn(&T) -> std::result::Result<Value<'static>, Refusal>,
) -> Result<()> {
    let (name, ty) = (feature.name.clone(), feature.ty);
    let read = |what: &str, given: Option<&T>| match given {
        None => Ok(None),
        Some(given) => read(given).map(Some).map_err(|_| {
            let given = shown(given.as_ref());
            Error::syntax(format!("feature '{name}' of view '{view}': {what} must be {ty}, got '{given}'"))
        }),
    };
    feature.min = read("MIN", min)?;
    feature.max = read("MAX", max)?;
    feature.default = read("DEFAULT", default)?;
    Ok(())
}

/// What FS.ALTER changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Alteration {
    options: Vec<ViewOption>,
    features: Vec<Feature>,
}

impl Alteration {
    /// Reads `[TTL d|NONE] [LOG ON|OFF] ... [ADD feature TYPE ...] ...`.
    pub fn parse(view: &[u8], arguments: &mut Arguments<'_>) -> Result<Self> {
        let mut alteration = Alteration { options: Vec::new(), features: Vec::new() };
        if arguments.is_empty() {
            return Err(Error::syntax("FS.ALTER needs something to change"));
        }
        while !arguments.is_empty() {
            if arguments.take_word("ADD") {
                alteration.features.push(parse_feature(view, arguments)?);
            } else if let Some(option) = take_option(arguments)? {
                alteration.options.push(option);
            } else {
                let word = shown(arguments.next("option")?);
                return Err(Error::syntax(format!(
                    "'{word}' cannot change in place (TTL, LOG, MAXLEN, CONSUMER, EXTRA, SAMPLE, DESCRIPTION and ADD \
                     can): register a new version"
                )));
            }
        }
        Ok(alteration)
    }

    /// The view as it is afterwards.
    pub fn applied_to(&self, view: &FeatureView) -> Result<FeatureView> {
        let mut altered = view.clone();
        for option in &self.options {
            option.clone().apply(&mut altered);
        }
        for feature in &self.features {
            altered.add_feature(feature.clone())?;
        }
        altered.check()?;
        Ok(altered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn register(words: &str) -> Result<FeatureView> {
        let items: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        parse_registration(b"profile", &mut Arguments::new(&items))
    }

    #[test]
    fn a_definition_reads_as_written() {
        let view = register(
            "VERSION 2 ENTITY user TTL 7d MAXLEN 500 EXTRA IGNORE consumer off SCHEMA age INT DEFAULT 0 MIN 0 MAX 150 \
             emb VECTOR 2 DEFAULT 0.1,0.2 e2 embedding DEFAULT 1,2,3 plan categorical VALUES 2 free pro INPUT",
        )
        .expect("a definition");
        assert_eq!((view.version, view.ttl_ms, view.maxlen, view.consumer), (2, Some(604_800_000), 500, false));
        let features = view.features();
        assert_eq!(features[0].default, Some(Value::Int(0)));
        assert_eq!(features[1].ty, FeatureType::Vector(2));
        assert_eq!(features[2].ty, FeatureType::Vector(3));
        assert!(features[3].input && features[3].values.as_slice() == ["free", "pro"]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for bad in [
            "",
            "SCHEMA a INT",
            "ENTITY u",
            "ENTITY u SCHEMA",
            "ENTITY u SCHEMA a",
            "ENTITY u SCHEMA a WORD",
            "ENTITY u SCHEMA at INT",
            "ENTITY u SCHEMA a INT a INT",
            "ENTITY u SCHEMA a INT DEFAULT x",
            "ENTITY u SCHEMA a INT MIN 5 MAX 4",
            "ENTITY u SCHEMA a INT MIN 5 DEFAULT 4",
            "ENTITY u SCHEMA a STRING MIN 5",
            "ENTITY u SCHEMA a INT VALUES 1 5",
            "ENTITY u SCHEMA a STRING VALUES 2 x",
            "ENTITY u SCHEMA a STRING VALUES 2 x x",
            "ENTITY u SCHEMA a STRING VALUES 1 x DEFAULT y",
            "ENTITY u SCHEMA a VECTOR",
            "ENTITY u SCHEMA a VECTOR 0",
            "ENTITY u SCHEMA a VECTOR 2 DEFAULT 1,2,3",
            "ENTITY u TTL 1h SCHEMA a INT TTL 2h",
            "ENTITY u SCHEMA a INT AGG COUNT WINDOW 1d",
            "ENTITY u DEDUP x SCHEMA a INT",
            "ENTITY u STORAGE DISK SCHEMA a INT",
            "ENTITY u MAXLEN 0 SCHEMA a INT",
            "VERSION 0 ENTITY u SCHEMA a INT",
            "ENTITY u NONSENSE SCHEMA a INT",
        ] {
            let error = register(bad).expect_err(bad);
            assert_eq!(error.code, Code::Err, "{bad}: {error}");
        }
    }

    #[test]
    fn an_alteration_changes_what_may_change_in_place() {
        let view = register("ENTITY u TTL 1d SCHEMA a INT").expect("a definition");
        let alter = |words: &str| {
            let items: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
            Alteration::parse(b"profile", &mut Arguments::new(&items)).and_then(|a| a.applied_to(&view))
        };
        let altered = alter("TTL NONE LOG OFF ADD b FLOAT DEFAULT 1").expect("an alteration");
        assert!(altered.ttl_ms.is_none() && altered.ttl_was_removed && !altered.log);
        assert_eq!(altered.features().len(), 2);
        let sampled = alter("SAMPLE 0.25 ON SERVE").expect("an alteration").sample;
        assert_eq!(sampled, Sampling { rate: 0.25, on: SampleOn::Serve });
        for bad in
            ["", "ENTITY x", "ADD a INT", "SCHEMA b INT", "TTL", "ADD b INT TTL 2d", "SAMPLE 2 ON SERVE", "SAMPLE 1"]
        {
            assert!(alter(bad).is_err(), "{bad}");
        }
    }
}
