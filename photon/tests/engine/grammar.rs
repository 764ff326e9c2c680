//! Answers under a grammar: always of it, whatever the model would rather say.
use photon::{
    Answer, Budget, DType, FinishReason, Grammar, GrammarError, Image, Photon, Request, Response,
    RunError, Sampling, Skill, SkillEvent,
};
use regex::Regex;
use serde_json::{Value, json};

use crate::{
    golden::{tiny, tiny3},
    pictures,
};

fn query(reasoning: bool) -> Skill {
    let question = "What is in the picture?".into();
    Skill::Query { question, reasoning, spatial_refs: vec![] }
}

fn schemas() -> Vec<Value> {
    let short = json!({"type": "string", "maxLength": 6});
    vec![
        json!({"type": "object", "properties": {"name": short, "round": {"type": "boolean"}},
            "required": ["name", "round"], "additionalProperties": false}),
        json!({"enum": ["red", "dark green", 7, null, {"a": [1, "b"]}]}),
        json!({"type": "array", "minItems": 2, "maxItems": 3,
            "items": {"type": "integer", "minimum": -3, "maximum": 120}}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {
            "type": "object", "additionalProperties": false, "required": ["is", "in"],
            "properties": {"is": {"enum": ["box", "ball"]},
                "in": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/tree"}}}}}}),
        json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
        json!({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, short, {"type": "null"}]}),
        json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "dot"}, "at": {"type": "integer",
                "minimum": 0, "maximum": 9}}, "required": ["kind", "at"], "additionalProperties": false},
            {"type": "object", "properties": {"kind": {"const": "none"}}, "required": ["kind"],
                "additionalProperties": false}]}),
        json!({"type": "object", "properties": {"ö": {"const": "図🦀"}, "b": {"type": "boolean"}},
            "required": ["ö"], "additionalProperties": false}),
    ]
}

const PATTERNS: [&str; 6] = [
    "(yes|no)",
    "[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "[äöü図🦀]{3}",
    "a(b|cd)*e?",
    "(?i)circle|a [a-z]{3,5} square",
    "",
];

/// Whether a value is what a schema of these tests describes.
fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    let fits = |schema: &Value, value: &Value| fits(root, schema, value);
    let one = |(name, rule): (&String, &Value)| match (name.as_str(), rule) {
        ("$defs", _) => true,
        ("$ref", Value::String(to)) => fits(root.pointer(&to[1..]).unwrap(), value),
        ("enum", Value::Array(choices)) => choices.contains(value),
        ("const", only) => only == value,
        ("anyOf", Value::Array(choices)) => choices.iter().any(|choice| fits(choice, value)),
        ("oneOf", Value::Array(choices)) => {
            choices.iter().filter(|choice| fits(choice, value)).count() == 1
        }
        ("type", Value::String(name)) => match name.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            // "-0" is one, though no i64.
            "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
            "null" => value.is_null(),
            other => panic!("no test needs the type {other}"),
        },
        ("minimum", least) => value.as_f64().is_none_or(|n| n >= least.as_f64().unwrap()),
        ("maximum", most) => value.as_f64().is_none_or(|n| n <= most.as_f64().unwrap()),
        ("maxLength", most) => {
            value.as_str().is_none_or(|text| text.chars().count() as u64 <= most.as_u64().unwrap())
        }
        ("pattern", Value::String(pattern)) => {
            value.as_str().is_none_or(|text| Regex::new(pattern).unwrap().is_match(text))
        }
        ("items", items) => value.as_array().is_none_or(|a| a.iter().all(|v| fits(items, v))),
        ("minItems", n) => value.as_array().is_none_or(|a| a.len() as u64 >= n.as_u64().unwrap()),
        ("maxItems", n) => value.as_array().is_none_or(|a| a.len() as u64 <= n.as_u64().unwrap()),
        ("properties", Value::Object(all)) => value.as_object().is_none_or(|object| {
            object.iter().all(|(key, v)| all.get(key).is_none_or(|schema| fits(schema, v)))
        }),
        ("required", Value::Array(keys)) => value
            .as_object()
            .is_none_or(|object| keys.iter().all(|key| object.contains_key(key.as_str().unwrap()))),
        ("additionalProperties", Value::Bool(false)) => value
            .as_object()
            .is_none_or(|object| object.keys().all(|key| schema["properties"].get(key).is_some())),
        (name, rule) => panic!("no test needs {name} to be {rule}"),
    };
    schema.as_object().unwrap().iter().all(one)
}

#[test]
fn the_check_of_these_tests_knows_what_fits() {
    let person = &schemas()[0];
    assert!(fits(person, person, &json!({"name": "Ann", "round": true})));
    assert!(!fits(person, person, &json!({"name": "Ann"})));
    assert!(!fits(person, person, &json!({"name": "Anneliese", "round": true})));
    assert!(!fits(person, person, &json!({"name": "Ann", "round": true, "more": 1})));
    let tree = &schemas()[3];
    assert!(fits(tree, tree, &json!({"is": "box", "in": [{"is": "ball", "in": []}]})));
    assert!(!fits(tree, tree, &json!({"is": "box", "in": [{"is": "cat", "in": []}]})));
}

fn answer_of(response: &Response) -> &str {
    match &response.answer {
        Answer::Query { answer, .. } => answer,
        other => panic!("a query was answered with {other:?}"),
    }
}

/// Runs a request; its text, pieced together from the events too.
fn run(photon: &Photon, request: &Request) -> Response {
    let mut streamed = String::new();
    let response = photon.run(request, &mut |event| {
        if let SkillEvent::Text(part) = event {
            let half = part.contains(char::REPLACEMENT_CHARACTER);
            assert!(!half, "half a character in {part:?} of {:?}", request.grammar);
            streamed.push_str(&part);
        }
    });
    let response = response.unwrap_or_else(|error| panic!("{:?}: {error}", request.grammar));
    assert_eq!(answer_of(&response), streamed, "{:?}", request.grammar);
    // Control ids of every model's configuration are the first ten.
    assert!(response.tokens.iter().all(|&id| id >= 10), "{:?}", response.tokens);
    response
}

/// Asks for answers under a grammar, coldly and warmly; how many were complete. They must pass `check`.
fn all_of(photon: &Photon, grammar: &Grammar, check: &dyn Fn(&str) -> bool) -> usize {
    let mut complete = 0;
    for seed in 0..4 {
        let temperature = if seed == 0 { 0.0 } else { 1.0 };
        let request = Request {
            grammar: Some(grammar.clone()),
            sampling: Sampling { temperature, seed, ..Sampling::GREEDY },
            budget: Budget { max_tokens: 60, ..Budget::default() },
            ..Request::new(query(false), None::<Image>)
        };
        let response = run(photon, &request);
        if response.finish_reason == FinishReason::Stop {
            let text = answer_of(&response);
            assert!(check(text), "seed {seed}: {text:?} is not of {grammar:?}");
            complete += 1;
        }
    }
    complete
}

#[track_caller]
fn answers_are_of_their_grammar(photon: &Photon) {
    let mut complete = 0;
    for schema in schemas() {
        let grammar = Grammar::JsonSchema(schema.to_string());
        complete += all_of(photon, &grammar, &|text| {
            serde_json::from_str(text).is_ok_and(|value| fits(&schema, &schema, &value))
        });
    }
    for pattern in PATTERNS {
        let whole = Regex::new(&format!("^(?:{pattern})$")).unwrap();
        complete += all_of(photon, &Grammar::Regex(pattern.into()), &|text| whole.is_match(text));
    }
    assert!(complete >= 50, "of 56 answers only {complete} were complete");
    let object =
        |text: &str| serde_json::from_str(text).is_ok_and(|value: Value| value.is_object());
    all_of(photon, &Grammar::Json, &object);
}

#[test]
fn answers_are_of_their_grammar_by_the_demo_model() {
    answers_are_of_their_grammar(&Photon::builder().build().unwrap());
}

#[test]
fn answers_are_of_their_grammar_by_random_models() {
    answers_are_of_their_grammar(&tiny(DType::F32));
    answers_are_of_their_grammar(&tiny3(DType::F32));
}

#[test]
fn a_picture_is_asked_and_steps_are_counted() {
    let photon = Photon::builder().build().unwrap();
    let schema = json!({"type": "object", "required": ["color"], "additionalProperties": false,
        "properties": {"color": {"enum": ["red", "green", "blue"]}}});
    let request = Request {
        grammar: Some(Grammar::JsonSchema(schema.to_string())),
        ..Request::new(query(false), pictures().pop())
    };
    let response = run(&photon, &request);
    let value: Value = serde_json::from_str(answer_of(&response)).unwrap();
    assert!(fits(&schema, &schema, &value), "{value}");
    let stats = photon.stats();
    assert_eq!(stats.grammar_tokens, response.tokens.len() as u64, "{stats:?}");
    assert!(stats.grammar_us > 0, "{stats:?}");
}

#[test]
fn thoughts_are_free() {
    let photon = Photon::builder().build().unwrap();
    let request = Request {
        grammar: Some(Grammar::Regex("(yes|no)".into())),
        budget: Budget { max_tokens: 8, ..Budget::default() },
        sampling: Sampling::GREEDY,
        ..Request::new(query(true), pictures().pop())
    };
    let free = Request { grammar: None, ..request.clone() };
    let thought = |response: &Response| match &response.answer {
        Answer::Query { reasoning: Some(thought), .. } => thought.clone(),
        other => panic!("no thought in {other:?}"),
    };
    let guided = photon.run(&request, &mut |_| {}).unwrap();
    assert!(["yes", "no"].contains(&answer_of(&guided)), "{:?}", guided.answer);
    assert_eq!(guided.finish_reason, FinishReason::Stop);
    let free = photon.run(&free, &mut |_| {}).unwrap();
    assert_eq!(thought(&guided), thought(&free));
}

#[test]
fn a_budget_cuts_and_a_stop_string_ends_what_a_grammar_began() {
    let photon = Photon::builder().build().unwrap();
    let request = Request {
        grammar: Some(Grammar::Regex("[a-z]{500}".into())),
        budget: Budget { max_tokens: 5, ..Budget::default() },
        ..Request::new(query(false), None::<Image>)
    };
    let response = run(&photon, &request);
    assert_eq!((response.tokens.len(), response.finish_reason), (5, FinishReason::Length));
    // The last token there is room for may complete the text.
    let request = Request {
        grammar: Some(Grammar::Regex("[0-9]".into())),
        budget: Budget { max_tokens: 1, ..Budget::default() },
        ..request
    };
    assert_eq!(run(&photon, &request).finish_reason, FinishReason::Stop);
    let request = Request {
        grammar: Some(Grammar::Regex("a, b, c".into())),
        stop: vec![", c".into()],
        budget: Budget::default(),
        ..request
    };
    let response = run(&photon, &request);
    assert_eq!((answer_of(&response), response.finish_reason), ("a, b", FinishReason::Stop));
}

/// The error of a request with this grammar, after which the engine answers the next.
#[track_caller]
fn refused(photon: &Photon, skill: Skill, grammar: Grammar) -> String {
    let request = Request { grammar: Some(grammar), ..Request::new(skill, pictures().pop()) };
    let error = match photon.run(&request, &mut |_| {}) {
        Err(RunError::Grammar(error)) => error,
        other => panic!("not refused: {other:?}"),
    };
    let next = Request {
        grammar: Some(Grammar::Regex("ok".into())),
        ..Request::new(query(false), None::<Image>)
    };
    assert_eq!(answer_of(&run(photon, &next)), "ok");
    error.to_string()
}

#[test]
fn grammars_that_cannot_be_followed_are_refused_with_the_place() {
    let photon = Photon::builder().build().unwrap();
    let schema =
        |schema: Value| refused(&photon, query(false), Grammar::JsonSchema(schema.to_string()));
    let unsatisfiable = json!({"type": "object", "required": ["a"],
        "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}}});
    let message = schema(unsatisfiable);
    assert!(message.ends_with(", at /properties/a"), "{message}");
    let unknown = json!({"items": {"anyOf": [{"type": "string"}, {"not": {"type": "string"}}]}});
    let message = schema(unknown);
    assert!(message.contains("not") && message.ends_with(", at /items/anyOf/1"), "{message}");
    let overlapping = json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]});
    assert!(schema(overlapping).contains("choices that cannot overlap"));
    let abroad = json!({"$ref": "https://example.org/schema.json"});
    assert!(schema(abroad).contains("places in the schema itself"));
    let message = schema(json!({"type": "thing"}));
    assert!(message.contains("thing"), "{message}");
    assert!(schema(json!(7)).contains("a schema is an object"));
    let text = |text: &str| refused(&photon, query(false), Grammar::JsonSchema(text.into()));
    assert!(text("{\"type\": ").contains("line 1 column"), "{}", text("{\"type\": "));
    let long = format!("{{\"title\": \"{}\"}}", "x".repeat(64 << 10));
    assert!(text(&long).contains("the most is 65536"));
    let pattern = |text: &str| refused(&photon, query(false), Grammar::Regex(text.into()));
    let message = pattern("yes|(no");
    assert!(message.contains("unclosed group, at character 5"), "{message}");
    assert!(pattern("a(?=b)b").contains("look"), "{}", pattern("a(?=b)b"));
    let message = pattern("[^\\s\\S]");
    assert!(message.contains("no text"), "{message}");
    let message = refused(&photon, Skill::Detect { object: "circle".into() }, Grammar::Json);
    assert_eq!(message, GrammarError::Skill("detect").to_string());
    assert_eq!(photon.stats().running, 0);
}
