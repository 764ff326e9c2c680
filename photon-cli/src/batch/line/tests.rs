use clap::Parser;
use photon::{CaptionLength, Grammar, ImageSource, Sampling, Skill, SpatialRef};
use serde_json::json;

use super::*;

#[derive(Parser)]
struct OnlySampling {
    #[command(flatten)]
    sampling: SamplingArgs,
}

fn defaults() -> Defaults {
    let sampling = OnlySampling::parse_from(["test"]).sampling;
    Defaults {
        sampling,
        max_objects: 150,
        reasoning: true,
        adapter: None,
        adapters: None,
        folder: "base".into(),
    }
}

fn read(line: &Value) -> Parsed {
    parse(line.to_string().as_bytes(), &defaults())
}

#[track_caller]
fn accepts(line: Value) -> Request {
    read(&line).request.unwrap()
}

#[track_caller]
fn refuses(line: Value, code: Code, message: &str) {
    let error = read(&line).request.unwrap_err();
    assert_eq!(error.code, code, "{}", error.message);
    assert!(error.message.contains(message), "{:?} lacks {message:?}", error.message);
}

#[test]
fn every_skill_is_read_with_the_defaults_of_the_format() {
    let request = accepts(json!({"skill": "query", "question": " what? "}));
    let question = Skill::Query { question: "what?".into(), reasoning: true, spatial_refs: vec![] };
    assert_eq!(request.skill, question);
    assert!(request.images.is_empty());
    assert_eq!((request.budget.max_tokens, request.budget.max_objects), (768, 150));
    let request = accepts(json!({"skill": "caption", "image": "QUJD", "settings": null}));
    assert_eq!(request.skill, Skill::Caption { length: CaptionLength::Normal });
    assert!(matches!(&request.images[..], [ImageSource::Encoded(bytes)] if bytes == b"ABC"));
    let request = accepts(json!({"skill": "detect", "object": "car", "images": ["QQ"],
        "settings": {"max_objects": 3, "temperature": 1, "max_tokens": 9}}));
    assert_eq!(request.skill, Skill::Detect { object: "car".into() });
    assert_eq!((request.budget.max_tokens, request.budget.max_objects), (9, 3));
    assert_eq!(request.sampling.temperature, 1.0);
    let request = accepts(json!({"skill": "point", "object": "door", "image_path": "a/b.png",
        "spatial_refs": [[0.5, 0.5], [0, 0, 1, 1]]}));
    assert!(matches!(&request.skill, Skill::Point { spatial_refs, .. } if spatial_refs.len() == 2));
    assert!(
        matches!(&request.images[..], [ImageSource::File(path)] if path.ends_with("base/a/b.png"))
    );
    let request = accepts(json!({"skill": "segment", "object": " cat ", "image": "QQ",
        "spatial_refs": [[0.5, 0.5]]}));
    let spatial_refs = vec![SpatialRef::Point([0.5, 0.5])];
    assert_eq!(request.skill, Skill::Segment { object: "cat".into(), spatial_refs });
    assert_eq!(request.sampling, Sampling::GREEDY);
    accepts(json!({"skill": "gaze", "eye": [0.5, 0.25], "image": "data:image/png;base64,QUJD"}));
    accepts(json!({"skill": "caption", "image": "QUJD", "unknown": {"key": 1}}));
    let request =
        accepts(json!({"skill": "query", "question": "x", "json_schema": {"b": 1, "a": []},
        "settings": {"stop": ["\n", " "]}}));
    assert_eq!(request.grammar, Some(Grammar::JsonSchema(r#"{"b":1,"a":[]}"#.into())));
    assert_eq!(request.stop, ["\n", " "]);
    let request = accepts(json!({"skill": "query", "question": "x", "regex": " yes| no"}));
    assert_eq!(request.grammar, Some(Grammar::Regex(" yes| no".into())));
}

#[test]
fn types_are_strict() {
    let query = |key: &str, value: Value| {
        let mut line = json!({"skill": "query", "question": "x"});
        line[key] = value;
        line
    };
    let wrong = |key: &str, value, message| {
        refuses(query(key, value), Code::InvalidRequest, message);
    };
    wrong("question", json!(7), "Field 'question' must be a string");
    wrong("question", json!("  "), "Field 'question' must be a non-empty string");
    wrong("reasoning", json!(1), "Field 'reasoning' must be a boolean");
    wrong("settings", json!([]), "Field 'settings' must be an object");
    wrong("settings", json!({"max_tokens": true}), "'settings.max_tokens' must be an integer");
    wrong("settings", json!({"max_tokens": 0}), "must be >= 1, received 0");
    wrong("settings", json!({"max_tokens": 1.5}), "'settings.max_tokens' must be an integer");
    wrong("settings", json!({"temperature": "0"}), "'settings.temperature' must be a number");
    wrong("settings", json!({"temperature": -1}), "temperature is -1");
    wrong("settings", json!({"top_p": 0}), "top_p is 0");
    wrong("spatial_refs", json!([[0.5]]), "spatial_refs[0] must contain 2 (point) or 4 (bbox)");
    wrong("spatial_refs", json!(["x"]), "Field 'spatial_refs' must be an array of");
    wrong("id", json!([1]), "Field 'id' must be");
    wrong("images", json!([7]), "array of strings");
    wrong("images", json!(vec!["QQ"; 17]), "16 images at most, and 17 were given");
    let two = json!({"skill": "detect", "object": "x", "images": ["QQ", "QQ"]});
    refuses(two, Code::InvalidRequest, "detect looks at one image, and 2 were given");
    wrong("json_schema", json!("{}"), "Field 'json_schema' must be a JSON schema");
    wrong("regex", json!(7), "Field 'regex' must be a string");
    wrong(
        "settings",
        json!({"stop": 7}),
        "'settings.stop' must be a string or an array of strings",
    );
    let both = json!({"skill": "query", "question": "x", "regex": "a", "json_schema": {}});
    refuses(both, Code::InvalidRequest, "give one of 'json_schema' and 'regex'");
    let both = json!({"skill": "query", "question": "x", "image": "QQ", "image_path": "x"});
    refuses(both, Code::InvalidRequest, "give one of");
    refuses(json!({"skill": "caption"}), Code::InvalidRequest, "caption needs an image");
    let length = json!({"skill": "caption", "length": "epic", "image": "QQ"});
    refuses(length, Code::InvalidRequest, "'short', 'normal' or 'long'");
    let object = json!({"skill": "segment", "image": "QQ"});
    refuses(object, Code::InvalidRequest, "Field 'object'");
    refuses(json!({"skill": "gaze", "image": "QQ"}), Code::InvalidRequest, "Field 'eye'");
    refuses(json!({"question": "x"}), Code::InvalidRequest, "Field 'skill'");
    refuses(json!([]), Code::InvalidRequest, "must be a JSON object");
}

#[test]
fn skills_and_pictures_have_errors_of_their_own() {
    refuses(json!({"skill": "sketch"}), Code::UnknownSkill, "unknown skill \"sketch\"");
    let caption = |image: &str| json!({"skill": "caption", "image": image});
    let bad = Code::ImageDecodeFailed;
    refuses(caption("no base64!"), bad, "the picture is not base64");
    refuses(caption("https://example.org/a.png"), bad, "addresses are not fetched");
    refuses(caption("data:image/png,abc"), bad, "a data URI must be");
}

#[test]
fn a_question_may_be_about_several_pictures() {
    let line = json!({"skill": "query", "question": "x", "images": ["QUJD", "data:x;base64,QQ"]});
    let images = accepts(line).images;
    let bytes = |image: &ImageSource| match image {
        ImageSource::Encoded(bytes) => bytes.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(images.iter().map(bytes).collect::<Vec<_>>(), [b"ABC".to_vec(), b"A".to_vec()]);
    let line = json!({"skill": "query", "question": "x", "image_paths": ["a.png", "/b.png"]});
    let path = |image: ImageSource| match image {
        ImageSource::File(path) => path.to_str().unwrap().to_owned(),
        other => panic!("{other:?}"),
    };
    let paths: Vec<_> = accepts(line).images.into_iter().map(path).collect();
    assert_eq!(paths, ["base/a.png", "/b.png"]);
}

#[test]
fn a_conversation_is_read_in_the_form_of_openai() {
    let request = accepts(json!({"skill": "chat", "reasoning": false, "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [
            {"type": "text", "text": "what "},
            {"type": "image", "image_path": "a.png"},
            {"type": "text", "text": "is this? "},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        ]},
        {"role": "assistant", "content": null},
        {"role": "user", "content": [{"type": "image", "image": "QQ"}]},
    ]}));
    let messages = vec![
        Message::new(Role::System, "be brief"),
        Message::with_images("what is this?", 2),
        Message::new(Role::Assistant, ""),
        Message::with_images("", 1),
    ];
    assert_eq!(request.skill, Skill::Chat { messages, reasoning: false });
    let kinds = request.images.iter().map(|image| matches!(image, ImageSource::File(_)));
    assert_eq!(kinds.collect::<Vec<_>>(), [true, false, false]);

    let chat = |messages: Value| json!({"skill": "chat", "messages": messages});
    let wrong = |messages, text| refuses(chat(messages), Code::InvalidRequest, text);
    wrong(json!("hi"), "Field 'messages' must be an array of {role, content}");
    wrong(json!([]), "there are no messages");
    wrong(json!([{"role": "tool", "content": "x"}]), "'messages[].role' must be 'system', 'user'");
    wrong(
        json!([{"role": "user", "content": 7}]),
        "'messages[].content' must be a string or an array",
    );
    wrong(json!([{"role": "user", "content": [{"type": "audio"}]}]), "a part of a message must be");
    wrong(json!([{"role": "assistant", "content": "x"}]), "messages[0] is the last");
}

#[test]
fn ids_come_back_as_they_were_given_even_with_an_error() {
    assert_eq!(read(&json!({"id": "a"})).id, json!("a"));
    assert_eq!(read(&json!({"id": 7, "skill": "x"})).id, json!(7));
    assert_eq!(parse(b"{not json", &defaults()).id, Value::Null);
}

#[test]
fn hostile_nesting_is_refused_before_it_is_parsed() {
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    let error = parse(deep.as_bytes(), &defaults()).request.unwrap_err();
    assert!(error.message.contains("nested deeper"), "{}", error.message);
}

#[test]
fn adapters_are_files_or_have_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a@1.pt");
    std::fs::write(&file, "").unwrap();
    let adapters = AdapterFolder::from(dir.path().to_path_buf());
    let named = Defaults { adapters: Some(adapters), adapter: Some("usual".into()), ..defaults() };
    let read = |extra: Value, defaults: &Defaults| {
        let mut line = json!({"skill": "query", "question": "what?"});
        line.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let read = parse(line.to_string().as_bytes(), defaults).request;
        read.map(|request| request.adapter).map_err(|error| error.message)
    };
    assert_eq!(read(json!({}), &named), Ok(Some("usual".into())));
    assert_eq!(read(json!({"adapter": "x/b.pt"}), &named), Ok(Some("base/x/b.pt".into())));
    for line in [json!({"adapter": "a@1"}), json!({"model": "moondream3-preview/a@1"})] {
        assert_eq!(read(line, &named), Ok(Some(file.clone())));
    }
    assert_eq!(read(json!({"model": "moondream3-preview"}), &named), Ok(Some("usual".into())));
    for (line, message) in [
        (json!({"adapter": "b@1"}), "there is no adapter b@1 in"),
        (json!({"model": "m/../a@1", "adapter": "a@1"}), "one of 'adapter' and 'model'"),
        (json!({"model": "m/..@1"}), "is no name of an adapter"),
        (json!({"model": 3}), "must be a string"),
    ] {
        let error = read(line.clone(), &named).unwrap_err();
        assert!(error.contains(message), "{line}: {error}");
    }
    let error = read(json!({"adapter": "a@1"}), &defaults()).unwrap_err();
    assert!(error.contains("--adapters"), "{error}");
}
