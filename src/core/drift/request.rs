//! What FS.DRIFT is asked for.

use super::method::{Method, Test};
use crate::arguments::Arguments;
use crate::definition::FeatureView;
use crate::error::{shown, Error, Result};
use crate::value::finite;

/// What is to be tested.
#[derive(Debug, Clone, PartialEq)]
pub struct DriftRequest {
    /// The feature; `None`: all.
    pub feature: Option<usize>,
    /// By which methods; none: all that fit.
    pub tests: Vec<Test>,
}

impl DriftRequest {
    /// Reads `[feature] [METHOD m [THRESHOLD x] ...]`.
    pub fn parse(view: &FeatureView, arguments: &mut Arguments<'_>) -> Result<Self> {
        // A feature may be called `method`: it is one where no method's name follows.
        let begins_methods = |arguments: &Arguments<'_>| {
            arguments.peek().is_some_and(|word| {
                word.eq_ignore_ascii_case(b"METHOD")
                    && (arguments.peek_second().and_then(Method::of_name).is_some() || view.position(word, 0).is_none())
            })
        };
        let feature = match arguments.peek() {
            Some(name) if !begins_methods(arguments) => {
                arguments.next("feature")?;
                Some(view.position(name, 0).ok_or_else(|| view.no_feature(name))?)
            }
            _ => None,
        };
        let mut tests: Vec<Test> = Vec::new();
        while arguments.take_word("METHOD") {
            let name = arguments.next("METHOD")?;
            let method = Method::of_name(name).ok_or_else(|| {
                let known = Method::ALL.map(Method::name).join(", ");
                Error::syntax(format!("METHOD must be one of {known}, got '{}'", shown(name)))
            })?;
            if tests.iter().any(|given| given.method == method) {
                return Err(Error::syntax(format!("METHOD {} is named twice", method.name())));
            }
            let threshold = match arguments.take_word("THRESHOLD") {
                false => method.threshold(),
                true => {
                    let text = arguments.next("THRESHOLD")?;
                    finite(text).filter(|x| *x >= 0.0).ok_or_else(|| {
                        Error::syntax(format!("THRESHOLD must be a finite number of at least 0, got '{}'", shown(text)))
                    })?
                }
            };
            tests.push(Test { method, threshold });
        }
        arguments.finish()?;
        Ok(DriftRequest { feature, tests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::schema_syntax::parse_registration;

    fn parse(words: &str) -> Result<DriftRequest> {
        let items = |words: &'static str| words.split(' ').map(str::as_bytes).collect::<Vec<_>>();
        let schema = items("ENTITY u SCHEMA a FLOAT method FLOAT");
        let view = parse_registration(b"v", &mut Arguments::new(&schema)).expect("a definition");
        let items: Vec<&[u8]> = words.split(' ').filter(|w| !w.is_empty()).map(str::as_bytes).collect();
        DriftRequest::parse(&view, &mut Arguments::new(&items))
    }

    #[test]
    fn a_feature_and_methods_are_told_apart() {
        for (words, feature, methods) in [
            ("", None, vec![]),
            ("a", Some(0), vec![]),
            ("method", Some(1), vec![]),
            ("METHOD ks", None, vec![(Method::Ks, 0.1)]),
            ("method ks", None, vec![(Method::Ks, 0.1)]),
            ("method method ks", Some(1), vec![(Method::Ks, 0.1)]),
            ("a METHOD psi THRESHOLD 0.5 METHOD mean", Some(0), vec![(Method::Psi, 0.5), (Method::Mean, 0.2)]),
        ] {
            let tests = methods.into_iter().map(|(method, threshold)| Test { method, threshold }).collect();
            assert_eq!(parse(words), Ok(DriftRequest { feature, tests }), "{words}");
        }
        for (words, code) in [
            ("b", Code::NoFeature),
            ("METHOD word", Code::Err),
            ("METHOD", Code::Err),
            ("a a", Code::Err),
            ("METHOD ks METHOD KS", Code::Err),
            ("METHOD ks THRESHOLD nan", Code::Err),
            ("METHOD ks THRESHOLD -1", Code::Err),
            ("METHOD ks THRESHOLD", Code::Err),
        ] {
            assert_eq!(parse(words).expect_err(words).code, code, "{words}");
        }
    }
}
