// Sends one mail as the JSON on the standard input says; writes what came of it, in JSON too.
"use strict";

const nodemailer = require("nodemailer");

let input = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (part) => (input += part));
process.stdin.on("end", () => {
    const { transport, mail, raw } = JSON.parse(input);
    if (raw !== null) {
        mail.raw = Buffer.from(raw, "base64");
    }
    nodemailer.createTransport(transport).sendMail(mail, (error, info) => {
        const told = error || info;
        process.stdout.write(
            JSON.stringify({
                error: error ? error.message : null,
                code: told.code || null,
                response: told.response || null,
                responseCode: told.responseCode || null,
                accepted: told.accepted || [],
                rejected: told.rejected || [],
            })
        );
    });
});
