//! Feature services: a named list of features across views that a model reads in one command, planned once.

use crate::arguments::{parse_version, Arguments};
use crate::definition::{Feature, FeatureView};
use crate::error::{shown, Code, Error, Result};
use crate::keys::{checked_entity_id, checked_name, ENTITY_ID_BYTES_MAX};
use crate::registry::Registry;
use crate::value::{write_field_as_json, Value};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Most features that a service names.
pub const REFERENCES_MAX: usize = 4_096;

/// How a service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Format {
    /// A map of name to value for each row.
    Map,
    /// An array of values for each row.
    Array,
    /// All rows as one block of float32.
    Tensor,
    /// All rows as one JSON text.
    Json,
}

impl Format {
    /// All, in the order of [`Format::WORDS`].
    const ALL: [Format; 4] = [Format::Map, Format::Array, Format::Tensor, Format::Json];
    /// Their words in a command.
    const WORDS: [&'static str; 4] = ["MAP", "ARRAY", "TENSOR", "JSON"];

    /// Its word in a command.
    pub fn name(self) -> &'static str {
        Format::WORDS[self as usize]
    }
}

/// The entities of a service that ranks.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Ranking {
    /// Of the one that is ranked for (`user`).
    pub context: String,
    /// Of those that are ranked (`item`).
    pub candidate: String,
    /// Of both together (`user_item`), with ids `context:candidate`.
    pub pair: Option<String>,
}

/// Whose row a feature comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The entity that is asked for, in a service that does not rank.
    Entity,
    /// The one that is ranked for.
    Context,
    /// One that is ranked.
    Candidate,
    /// Both together.
    Pair,
}

/// A feature that a service names.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Reference {
    /// The view.
    pub view: String,
    /// Its version: the one that was named, or the newest when the service was set.
    pub version: u32,
    /// The version was named.
    pub names_version: bool,
    /// The feature.
    pub feature: String,
    /// The view's entity.
    entity: String,
    /// What the feature was when the service was set: its type, and what decides its columns.
    kind: String,
}

impl fmt::Display for Reference {
    /// As it was written: `view:feature` or `view@version:feature`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names_version {
            true => write!(f, "{}@{}:{}", self.view, self.version, self.feature),
            false => write!(f, "{}:{}", self.view, self.feature),
        }
    }
}

/// A service as it was set.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its entities, if it ranks.
    pub ranking: Option<Ranking>,
    /// How it answers.
    pub format: Format,
    /// Each value comes with its status and age; a tensor with the bitmap of values that are present.
    pub with_status: bool,
    /// The features, in the order of the answer.
    pub references: Vec<Reference>,
}

/// What of a feature must stay as it is for a service's answer to keep its shape and meaning.
fn kind_of(feature: &Feature) -> String {
    match feature.values.as_slice() {
        [] => feature.ty.to_string(),
        // JSON, so that no two lists of values read alike.
        values => format!("{} VALUES {}", feature.ty, serde_json::to_string(values).unwrap_or_default()),
    }
}

impl Service {
    /// Reads `[CONTEXT entity CANDIDATE entity [PAIR entity]] [FORMAT format] [WITHSTATUS] FEATURES n view:feature ...`
    /// and resolves it. An error means that it cannot be served.
    pub fn parse(name: &[u8], arguments: &mut Arguments<'_>, registry: &Registry) -> Result<Self> {
        let name = checked_name("service name", name)?.to_owned();
        let (mut context, mut candidate, mut pair) = (None, None, None);
        let (mut format, mut with_status) = (Format::Map, false);
        loop {
            let entity = |arguments: &mut Arguments<'_>, what| {
                checked_name("entity name", arguments.next(what)?).map(|name| Some(name.to_owned()))
            };
            if arguments.take_word("CONTEXT") {
                context = entity(arguments, "CONTEXT")?;
            } else if arguments.take_word("CANDIDATE") {
                candidate = entity(arguments, "CANDIDATE")?;
            } else if arguments.take_word("PAIR") {
                pair = entity(arguments, "PAIR")?;
            } else if arguments.take_word("FORMAT") {
                format = Format::ALL[arguments.one_of("FORMAT", &Format::WORDS)?];
            } else if arguments.take_word("WITHSTATUS") {
                with_status = true;
            } else if arguments.take_word("FEATURES") {
                break;
            } else {
                let given = arguments.next("FEATURES")?;
                return Err(Error::syntax(format!("expected FEATURES or an option, got '{}'", shown(given))));
            }
        }
        let ranking = match (context, candidate, pair) {
            (None, None, None) => None,
            (Some(context), Some(candidate), pair) => Some(Ranking { context, candidate, pair }),
            _ => return Err(Error::syntax("CONTEXT and CANDIDATE stand together, and PAIR with both")),
        };
        let count = arguments.number("the number of FEATURES", 1)?;
        if count > REFERENCES_MAX as u64 {
            return Err(Error::syntax(format!("a service has at most {REFERENCES_MAX} features, got {count}")));
        }
        let references: Result<_> =
            (0..count).map(|_| parse_reference(arguments.next("view:feature")?, registry)).collect();
        let service = Service { name, ranking, format, with_status, references: references? };
        arguments.finish()?;
        service.check()?;
        service.plan(registry)?;
        Ok(service)
    }

    /// Checks what can be said of it without its views.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::syntax(format!("service '{}': {why}", self.name)));
        checked_name("service name", self.name.as_bytes())?;
        if let Some(Ranking { context, candidate, pair }) = &self.ranking {
            let entities = [Some(context), Some(candidate), pair.as_ref()];
            let named: Vec<&String> = entities.into_iter().flatten().collect();
            if let Some(twice) = named.iter().enumerate().find(|(i, entity)| named[..*i].contains(entity)) {
                return refuse(format!("CONTEXT, CANDIDATE and PAIR must differ, entity '{}' is named twice", twice.1));
            }
        }
        if self.references.is_empty() || self.references.len() > REFERENCES_MAX {
            return refuse(format!("it has {} features, allowed are 1 to {REFERENCES_MAX}", self.references.len()));
        }
        let mut names = HashSet::new();
        match self.references.iter().find(|r| !names.insert(r.to_string())) {
            Some(twice) => refuse(format!("FEATURES names '{twice}' twice")),
            None => Ok(()),
        }
    }

    /// What a view's rows are to this service.
    fn role_of(&self, entity: &str) -> Option<Role> {
        match &self.ranking {
            None => Some(Role::Entity),
            Some(ranking) if ranking.context == entity => Some(Role::Context),
            Some(ranking) if ranking.candidate == entity => Some(Role::Candidate),
            Some(ranking) if ranking.pair.as_deref() == Some(entity) => Some(Role::Pair),
            Some(_) => None,
        }
    }

    /// Resolves it against the definitions as they are now. An error says what has changed since it was set.
    pub fn plan(&self, registry: &Registry) -> Result<Plan> {
        let failed = |code: Code, why: String| Error::new(code, format!("service '{}': {why}", self.name));
        let mut plan = Plan { parts: Vec::new(), sources: Vec::new(), widths: Vec::new() };
        for reference in &self.references {
            let view = registry
                .version(reference.view.as_bytes(), Some(reference.version))
                .map_err(|e| failed(e.code, e.message))?;
            let feature =
                view.served_position(reference.feature.as_bytes(), 0).map_err(|e| failed(e.code, e.message))?;
            let definition = &view.features()[feature];
            let kind = kind_of(definition);
            let was_and_is = match (&reference.entity, &reference.kind) {
                (entity, _) if *entity != view.entity => {
                    Some((format!("of entity {entity}"), format!("of {}", view.entity)))
                }
                (_, known) if *known != kind => Some((shown(known.as_bytes()), shown(kind.as_bytes()))),
                _ => None,
            };
            if let Some((was, is)) = was_and_is {
                let what = format!("'{reference}' was {was} when the service was set and is {is} now: set it again");
                return Err(failed(Code::Schema, what));
            }
            let Some(role) = self.role_of(&view.entity) else {
                let what = format!("view '{}' is of entity '{}', which is none of its", view.name, view.entity);
                return Err(failed(Code::Schema, format!("{what} CONTEXT, CANDIDATE and PAIR")));
            };
            if let Some(first) = plan.parts.first().filter(|p| role == Role::Entity && p.view.entity != view.entity) {
                let both = format!("'{}' and '{}'", first.view.entity, view.entity);
                return Err(failed(
                    Code::Schema,
                    format!("its views are of entities {both}: only CONTEXT and CANDIDATE take several"),
                ));
            }
            if self.format == Format::Tensor {
                let width = view.tensor_columns(&[feature]).map_err(|e| failed(e.code, e.message))?;
                plan.widths.extend(width);
            }
            let known = plan.parts.iter().position(|p| p.view.name == view.name && p.view.version == view.version);
            let part = known.unwrap_or_else(|| {
                plan.parts.push(Part { role, view: Arc::clone(view), features: Vec::new(), columns: Vec::new() });
                plan.parts.len() - 1
            });
            plan.sources.push((part, plan.parts[part].features.len()));
            plan.parts[part].features.push(feature);
        }
        let mut offset = 0;
        for ((part, _), width) in plan.sources.iter().zip(&plan.widths) {
            plan.parts[*part].columns.push((offset, *width));
            offset += width;
        }
        Ok(plan)
    }

    /// The version of each view that it reads, in the order of the features. A view may be read in several.
    pub fn versions(&self) -> Vec<(&str, u32)> {
        let mut versions = Vec::new();
        for reference in &self.references {
            let version = (reference.view.as_str(), reference.version);
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        versions
    }

    /// The names of the answer's columns: of a tensor, one for each number of a row; else one for each feature.
    pub fn columns(&self, plan: &Plan) -> Vec<String> {
        if self.format != Format::Tensor {
            return self.references.iter().map(Reference::to_string).collect();
        }
        let named = self.references.iter().zip(&plan.sources).zip(&plan.widths);
        named
            .flat_map(|((reference, (part, place)), width)| {
                let part = &plan.parts[*part];
                let is_vector = part.view.features()[part.features[*place]].ty.is_vector();
                (0..*width).map(move |i| if is_vector { format!("{reference}[{i}]") } else { reference.to_string() })
            })
            .collect()
    }
}

/// Reads `view:feature` or `view@version:feature`.
fn parse_reference(text: &[u8], registry: &Registry) -> Result<Reference> {
    let malformed = || Error::syntax(format!("expected view:feature or view@version:feature, got '{}'", shown(text)));
    let colon = text.iter().position(|b| *b == b':').ok_or_else(malformed)?;
    let (view, feature) = (&text[..colon], &text[colon + 1..]);
    let (view, version) = match view.iter().position(|b| *b == b'@') {
        Some(at) => (&view[..at], Some(parse_version(&view[at + 1..])?)),
        None => (view, None),
    };
    let definition = registry.version(view, version)?;
    let place = definition.served_position(feature, 0)?;
    let feature = &definition.features()[place];
    Ok(Reference {
        view: definition.name.clone(),
        version: definition.version,
        names_version: version.is_some(),
        feature: feature.name.clone(),
        entity: definition.entity.clone(),
        kind: kind_of(feature),
    })
}

/// A service resolved against the definitions.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The views that it reads, each once.
    pub parts: Vec<Part>,
    /// For each feature of the service: the part that has it, and its place there.
    pub sources: Vec<(usize, usize)>,
    /// Of a tensor: how many columns each feature fills. Empty in other formats.
    pub widths: Vec<usize>,
}

/// What a service reads of one view.
#[derive(Debug, Clone)]
pub struct Part {
    /// Whose rows they are.
    pub role: Role,
    /// The view.
    pub view: Arc<FeatureView>,
    /// The features, by index.
    pub features: Vec<usize>,
    /// Of a tensor: where in a row each feature's columns begin, and how many they are.
    pub columns: Vec<(usize, usize)>,
}

impl Plan {
    /// How many numbers (of a tensor's row), or values with the components of vectors one by one, a row has.
    pub fn width(&self) -> usize {
        let of_part = |part: &Part| -> usize {
            part.features.iter().map(|f| part.view.features()[*f].columns().unwrap_or(1)).sum()
        };
        self.parts.iter().map(of_part).sum()
    }

    /// Does it read rows of the pair?
    pub fn has_pairs(&self) -> bool {
        self.parts.iter().any(|part| part.role == Role::Pair)
    }
}

/// The id of a pair, `context:candidate`, into `out`.
pub fn write_pair_id(context: &[u8], candidate: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(context);
    out.push(b':');
    out.extend_from_slice(candidate);
}

/// The context's id of a ranking, checked. Where pairs are read it must not hold a `:`: two pairs would share an id.
pub fn checked_context_id<'a>(id: &'a [u8], plan: &Plan) -> Result<&'a [u8]> {
    let id = checked_entity_id(id)?;
    if plan.has_pairs() && id.contains(&b':') {
        return Err(Error::syntax(format!(
            "context id '{}' holds a ':', which separates the ids of a pair",
            shown(id)
        )));
    }
    Ok(id)
}

/// The ids of candidates, checked, and of their pairs with the context where pairs are read.
pub fn check_candidate_ids(ids: &[&[u8]], context_id: &[u8], plan: &Plan) -> Result<()> {
    let has_pairs = plan.has_pairs();
    ids.iter().try_for_each(|id| {
        checked_entity_id(id)?;
        if has_pairs && context_id.len() + 1 + id.len() > ENTITY_ID_BYTES_MAX {
            let mut pair = Vec::new();
            write_pair_id(context_id, id, &mut pair);
            checked_entity_id(&pair)?;
        }
        Ok(())
    })
}

/// Appends a served value as JSON; nil is null.
pub fn write_json(feature: &Feature, value: Option<&Value<'_>>, out: &mut Vec<u8>) {
    match value {
        Some(value) => write_field_as_json(feature.ty.into(), &value.to_field(), out),
        None => out.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema_syntax::parse_registration;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        for (name, words) in [
            ("profile", "ENTITY user SCHEMA age INT plan STRING VALUES 2 free pro seen FLOAT INPUT"),
            ("profile", "VERSION 2 ENTITY user SCHEMA age FLOAT tags LIST"),
            ("goods", "ENTITY item SCHEMA price FLOAT emb VECTOR 3"),
            ("both", "ENTITY user_item SCHEMA clicks INT"),
        ] {
            let items: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
            let definition = parse_registration(name.as_bytes(), &mut Arguments::new(&items)).expect("a definition");
            registry.register(definition).expect("registered");
        }
        registry
    }

    fn parse(registry: &Registry, words: &str) -> Result<Service> {
        let items: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        Service::parse(b"s", &mut Arguments::new(&items), registry)
    }

    const RANKING: &str = "CONTEXT user CANDIDATE item PAIR user_item FORMAT TENSOR FEATURES 4 goods:price \
                           profile@1:age both:clicks goods:emb";

    #[test]
    fn a_ranking_is_laid_out_in_the_order_of_its_features() {
        let registry = registry();
        let service = parse(&registry, RANKING).expect("a service");
        let plan = service.plan(&registry).expect("a plan");
        let parts: Vec<_> = plan.parts.iter().map(|p| (p.view.name.as_str(), p.role, p.columns.clone())).collect();
        assert_eq!(
            parts,
            [
                ("goods", Role::Candidate, vec![(0, 1), (3, 3)]),
                ("profile", Role::Context, vec![(1, 1)]),
                ("both", Role::Pair, vec![(2, 1)])
            ]
        );
        assert_eq!((plan.width(), plan.has_pairs()), (6, true));
        assert_eq!(
            service.columns(&plan),
            ["goods:price", "profile@1:age", "both:clicks", "goods:emb[0]", "goods:emb[1]", "goods:emb[2]"]
        );
    }

    #[test]
    fn a_version_that_is_not_named_is_the_newest_when_the_service_is_set() {
        let mut registry = registry();
        let service = parse(&registry, "FEATURES 1 profile:tags").expect("a service");
        assert_eq!((service.references[0].version, service.format), (2, Format::Map));
        registry.drop_view(b"profile", Some(2), false).expect("dropped");
        let error = service.plan(&registry).expect_err("gone");
        assert_eq!(error.to_string(), "NOVIEW service 's': version 2 of view 'profile' is not registered");
    }

    #[test]
    fn a_feature_that_became_another_is_told() {
        let mut registry = registry();
        let service = parse(&registry, "FEATURES 1 goods:price").expect("a service");
        registry.drop_view(b"goods", None, false).expect("dropped");
        let words: Vec<&[u8]> = "ENTITY item SCHEMA price VECTOR 2".split(' ').map(str::as_bytes).collect();
        let other = parse_registration(b"goods", &mut Arguments::new(&words)).expect("a definition");
        registry.register(other).expect("registered");
        let error = service.plan(&registry).expect_err("another type");
        assert_eq!(error.code, Code::Schema);
        assert!(error.message.contains("was FLOAT when the service was set and is VECTOR 2 now"), "{error}");
    }

    #[test]
    fn what_cannot_be_served_is_refused_when_it_is_set() {
        let registry = registry();
        let mut many = format!("FEATURES {}", REFERENCES_MAX + 1);
        (0..=REFERENCES_MAX).for_each(|_| many.push_str(" goods:price"));
        for (words, code, part) in [
            ("", Code::Err, "FEATURES is missing"),
            ("FEATURES 0", Code::Err, "at least 1"),
            ("FEATURES 2 goods:price", Code::Err, "view:feature is missing"),
            ("FEATURES 1 goods:price more", Code::Err, "unexpected argument 'more'"),
            ("FEATURES 2 goods:price goods:price", Code::Err, "names 'goods:price' twice"),
            ("FEATURES 1 goods", Code::Err, "expected view:feature"),
            ("FEATURES 1 goods@x:price", Code::Err, "VERSION must be"),
            ("FEATURES 1 goods@7:price", Code::NoView, "version 7"),
            ("FEATURES 1 none:price", Code::NoView, "'none'"),
            ("FEATURES 1 goods:none", Code::NoFeature, "'none'"),
            ("FEATURES 1 profile@1:seen", Code::NoFeature, "INPUT"),
            ("FEATURES 2 goods:price profile:age", Code::Schema, "entities 'item' and 'user'"),
            ("FORMAT TENSOR FEATURES 1 profile:tags", Code::Schema, "has no number"),
            ("FORMAT CSV FEATURES 1 goods:price", Code::Err, "FORMAT must be"),
            ("CONTEXT user FEATURES 1 goods:price", Code::Err, "stand together"),
            ("PAIR user_item FEATURES 1 both:clicks", Code::Err, "stand together"),
            ("CONTEXT user CANDIDATE user FEATURES 1 profile:age", Code::Err, "entity 'user' is named twice"),
            ("CONTEXT user CANDIDATE item FEATURES 1 both:clicks", Code::Schema, "entity 'user_item'"),
            (many.as_str(), Code::Err, "at most 4096"),
        ] {
            let error = parse(&registry, words).expect_err(words);
            assert_eq!(error.code, code, "{words}: {error}");
            assert!(error.message.contains(part), "{words}: {error}");
        }
    }

    #[test]
    fn a_context_id_must_not_split_a_pair_elsewhere() {
        let registry = registry();
        let plan = |words| parse(&registry, words).and_then(|s| s.plan(&registry)).expect("a plan");
        let pairs = plan(RANKING);
        assert!(checked_context_id(b"u1", &pairs).is_ok() && checked_context_id(b"u:1", &pairs).is_err());
        let none = plan("CONTEXT user CANDIDATE item FEATURES 1 goods:price");
        assert!(checked_context_id(b"u:1", &none).is_ok() && checked_context_id(b"", &none).is_err());
        let mut id = Vec::new();
        write_pair_id(b"u1", b"i:9", &mut id);
        assert_eq!(id, b"u1:i:9");
    }
}
