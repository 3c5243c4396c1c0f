"""Files and text: nothing that knows of learning."""
