//! `photon chat`: a conversation, typed or read.
//!
//! Every turn sends the conversation so far; what was computed for earlier turns is in the engine's
//! cache, so only what is new is computed. A turn that fails is taken back, and the conversation goes on
//! from where it was. Deliberately absent: a line editor; the terminal's own does.
use std::{
    io::{self, BufRead, IsTerminal},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use photon::{
    Answer, Budget, Event, Image, MAX_IMAGES, Message, Photon, Request, Response, Role, RunError,
    Sampling, Skill, SkillEvent,
};

use crate::{
    Failure,
    args::ChatArgs,
    output::{self, Printer},
    run::{json_of, load, read_image},
};

const HELP: &str = "\
type a question and press Enter; the answer comes word by word
  /image FILE   show a picture with the next question
  /system TEXT  say how to answer
  /reset        forget the conversation
  /help         this
  /quit         end, as Ctrl-D does
Ctrl-C stops an answer. A question that begins with / needs a space before it.";

/// What a line that was typed says.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Nothing,
    Words(&'a str),
    Image(&'a str),
    System(&'a str),
    Reset,
    Help,
    Quit,
}

impl<'a> Said<'a> {
    /// # Errors
    /// If it is a command that there is not, or that lacks something.
    fn read(line: &'a str) -> Result<Self, String> {
        let Some(command) = line.strip_prefix('/') else {
            return Ok(match line.trim() {
                "" => Said::Nothing,
                words => Said::Words(words),
            });
        };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command.trim(), ""));
        match (name, rest.trim()) {
            ("image", "") => Err("/image needs a file: /image photo.jpg".into()),
            ("image", file) => Ok(Said::Image(file)),
            ("system", text) => Ok(Said::System(text)),
            ("reset", _) => Ok(Said::Reset),
            ("help" | "?", _) => Ok(Said::Help),
            ("quit" | "exit", _) => Ok(Said::Quit),
            _ => Err(format!("there is no command /{name}; /help lists them")),
        }
    }
}

/// What Ctrl-C means now.
#[derive(Debug, Default)]
struct Interrupt {
    /// An answer is under way: it stops. Else the program ends.
    answering: AtomicBool,
    pressed: AtomicBool,
}

impl Interrupt {
    fn install() -> anyhow::Result<Arc<Self>> {
        let interrupt = Arc::new(Interrupt::default());
        let handler = Arc::clone(&interrupt);
        ctrlc::set_handler(move || {
            if !handler.answering.load(Ordering::SeqCst)
                || handler.pressed.swap(true, Ordering::SeqCst)
            {
                std::process::exit(130);
            }
        })
        .context("cannot handle Ctrl-C")?;
        Ok(interrupt)
    }
}

struct Chat {
    args: ChatArgs,
    photon: Photon,
    adapter: Option<PathBuf>,
    sampling: Sampling,
    interrupt: Arc<Interrupt>,
    system: Option<String>,
    /// What was said, without the system's text.
    messages: Vec<Message>,
    /// The pictures of those messages, then the ones for the next.
    images: Vec<Image>,
}

pub(crate) fn chat(mut args: ChatArgs) -> Result<(), Failure> {
    let lines_are_turns = args.messages.is_empty();
    if lines_are_turns && args.images.iter().any(|name| name == "-") {
        return Err(Failure::Usage(
            "standard input is the conversation; with --message, `-` can be a picture".into(),
        ));
    }
    let skill = Skill::Chat { messages: Vec::new(), reasoning: args.reasoning };
    let sampling = args.sampling.over(Sampling::default_for(&skill));
    sampling.check().map_err(|rejected| Failure::Usage(rejected.to_string()))?;
    if args.images.len() > MAX_IMAGES {
        let given = args.images.len();
        let message = format!("a conversation can have {MAX_IMAGES} pictures, not {given}");
        return Err(Failure::Usage(message));
    }
    let images = args.images.iter().map(|name| read_image(name)).collect::<Result<_, _>>()?;
    let (photon, adapter) = load(&args.model, |builder| builder.max_seqs(1))?;
    let messages = std::mem::take(&mut args.messages);
    let system = args.system.take();
    let interrupt = Interrupt::install()?;
    let mut chat =
        Chat { args, photon, adapter, sampling, interrupt, system, messages: Vec::new(), images };
    if !lines_are_turns {
        return messages.iter().try_for_each(|text| chat.turn(text));
    }
    match io::stdin().is_terminal() {
        true => chat.typed(),
        false => chat.piped(),
    }
}

impl Chat {
    /// A conversation with somebody at the terminal: what goes wrong is said, and it goes on.
    fn typed(&mut self) -> Result<(), Failure> {
        output::note(&format!("{} is ready; /help says what can be typed", self.args.model.model));
        loop {
            output::prompt(&match self.pending() {
                0 => "> ".to_owned(),
                1 => "[1 picture] > ".to_owned(),
                n => format!("[{n} pictures] > "),
            });
            let mut line = String::new();
            if io::stdin().lock().read_line(&mut line).context("the terminal")? == 0 {
                output::prompt("\n");
                return Ok(());
            }
            match self.line(&line) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(Failure::Usage(message)) => output::error(&message),
                Err(Failure::Failed(error)) if is_fatal(&error) => {
                    return Err(Failure::Failed(error));
                }
                Err(Failure::Failed(error)) => output::error(&output::describe(&error)),
                Err(Failure::Interrupted) => output::prompt("\n"),
            }
        }
    }

    /// A conversation from a file or a program: a line is a turn or a command, and what goes wrong ends
    /// it.
    fn piped(&mut self) -> Result<(), Failure> {
        for line in io::stdin().lock().lines() {
            if !self.line(&line.context("standard input")?)? {
                break;
            }
        }
        Ok(())
    }

    /// Does what a line says; false if it ends the conversation.
    fn line(&mut self, line: &str) -> Result<bool, Failure> {
        match Said::read(line).map_err(Failure::Usage)? {
            Said::Nothing => {}
            Said::Words(text) => self.turn(text)?,
            Said::Image(file) => self.show(file)?,
            Said::System(text) => self.system = Some(text.to_owned()),
            Said::Reset => {
                self.messages.clear();
                self.images.clear();
            }
            Said::Help => HELP.lines().for_each(output::raw_note),
            Said::Quit => return Ok(false),
        }
        Ok(true)
    }

    /// Pictures that no message has yet.
    fn pending(&self) -> usize {
        self.images.len() - self.messages.iter().map(|message| message.images).sum::<usize>()
    }

    fn show(&mut self, file: &str) -> Result<(), Failure> {
        if self.images.len() == MAX_IMAGES {
            let message =
                format!("a conversation can have {MAX_IMAGES} pictures; /reset begins anew");
            return Err(Failure::Usage(message));
        }
        let image = Image::open(Path::new(file)).with_context(|| file.to_owned())?;
        self.images.push(image);
        Ok(())
    }

    /// Asks, prints the answer as it comes, and remembers both.
    fn turn(&mut self, text: &str) -> Result<(), Failure> {
        self.messages.push(Message::with_images(text, self.pending()));
        let done = self.ask();
        if matches!(done, Err(Failure::Usage(_) | Failure::Failed(_))) {
            // Its pictures are pending again.
            self.messages.pop();
        }
        done
    }

    fn ask(&mut self) -> Result<(), Failure> {
        let system = self.system.iter().filter(|text| !text.is_empty());
        let system = system.map(|text| Message::new(Role::System, text.as_str()));
        let messages = system.chain(self.messages.iter().cloned()).collect();
        let skill = Skill::Chat { messages, reasoning: self.args.reasoning };
        let request = Request {
            sampling: self.sampling,
            budget: Budget { max_tokens: self.args.sampling.max_tokens, ..Budget::default() },
            adapter: self.adapter.clone(),
            ..Request::new(skill, None::<Image>).with_images(self.images.iter().cloned())
        };
        let mut printer = Printer::new(self.args.output.json, None);
        let (answer, response) = self.listen(request, &mut printer)?;
        self.messages.push(Message::new(Role::Assistant, answer));
        let Some(response) = response else { return Err(Failure::Interrupted) };
        printer.finish(&response)?;
        if self.args.output.json {
            output::line(&json_of(&response, None)?.to_string())?;
        }
        if self.args.output.stats {
            output::stats(&response);
        }
        Ok(())
    }

    /// The answer's text, and the response unless Ctrl-C stopped it.
    fn listen(
        &self,
        request: Request,
        printer: &mut Printer,
    ) -> Result<(String, Option<Response>), Failure> {
        let interrupt = &self.interrupt;
        interrupt.pressed.store(false, Ordering::SeqCst);
        interrupt.answering.store(true, Ordering::SeqCst);
        let done = (|| {
            let mut text = String::new();
            for event in self.photon.submit(request)? {
                match event? {
                    Event::Done(response) => {
                        if let Answer::Query { answer, .. } = &response.answer {
                            text.clone_from(answer);
                        }
                        return Ok((text, Some(response)));
                    }
                    Event::Skill(event) => {
                        if let SkillEvent::Text(part) = &event {
                            text.push_str(part);
                        }
                        printer.event(&event);
                    }
                    _ => {}
                }
                // Dropping the ticket cancels the request.
                if interrupt.pressed.load(Ordering::SeqCst) {
                    break;
                }
            }
            Ok((text, None))
        })();
        interrupt.answering.store(false, Ordering::SeqCst);
        done.map_err(|error: RunError| match error {
            RunError::Rejected(rejected) => Failure::Usage(rejected.to_string()),
            error => error.into(),
        })
    }
}

/// Whether nothing that follows could be answered or seen.
fn is_fatal(error: &anyhow::Error) -> bool {
    let is_gone = |e: &RunError| matches!(e, RunError::Stopped(_) | RunError::Device(_));
    output::is_closed_pipe(error) || error.downcast_ref().is_some_and(is_gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_words_or_a_command() {
        assert_eq!(Said::read(" what is this? \n"), Ok(Said::Words("what is this?")));
        assert_eq!(Said::read(" /usr is what?\n"), Ok(Said::Words("/usr is what?")));
        assert_eq!(Said::read(" \n"), Ok(Said::Nothing));
        assert_eq!(Said::read("/image my cat.jpg\n"), Ok(Said::Image("my cat.jpg")));
        assert_eq!(Said::read("/system be brief\n"), Ok(Said::System("be brief")));
        assert_eq!(Said::read("/system\n"), Ok(Said::System("")));
        assert_eq!(Said::read("/quit\n"), Ok(Said::Quit));
        assert!(Said::read("/image\n").unwrap_err().contains("needs a file"));
        assert!(Said::read("/usr is what?\n").unwrap_err().contains("no command /usr"));
    }
}
